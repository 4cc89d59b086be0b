//! A guest without an operating system: says its banner on the first serial port, then a dot every so often, for ever.
//!
//! It shows whether a KVM runs a kernel's code at native speed, and stands in for a guest in tests: machines whose KVM
//! only emulates privileged code run it, too.

/// What it says first.
pub const BANNER: &str = "polydev toy guest\n";
/// Where it is loaded, and begins (64-bit entry of the Linux boot protocol).
const ADDRESS: u64 = 0x0100_0000;
const HEADERS: u64 = 64 + 56;

/// An ELF that Firecracker takes for a kernel; between two dots it counts that many rounds.
pub fn elf(rounds: u32) -> Vec<u8> {
    let code = code(rounds);
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // ELF header: 64 bits, little endian, executable, x86-64, one program header.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for number in [ADDRESS + HEADERS, 64, 0] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Program header: load, readable and executable.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for number in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn code(rounds: u32) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.extend([0x48, 0x8d, 0x35, 22, 0, 0, 0]); // lea rsi, [rip + 22]: behind the code
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]); // say: lodsb; test al, al; jz tick; out dx, al; jmp say
    code.extend([0xb0, b'.', 0xee, 0xb9]); // tick: mov al, '.'; out dx, al; mov ecx, rounds
    code.extend(rounds.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xf2]); // wait: dec ecx; jnz wait; jmp tick
    code.extend(BANNER.bytes());
    code.push(0);
    code
}
