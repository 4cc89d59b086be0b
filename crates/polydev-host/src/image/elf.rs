//! Reads the few parts of 64-bit little-endian ELF files that the builder needs: needed libraries, search paths, interpreter, sections.
//!
//! Files come out of packages, so every offset is checked and a damaged file is "no ELF", never a panic. Layout: System V ABI, `elf(5)`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAX_PART: u64 = 64 << 20;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const X86_64: u16 = 62;

/// What the dynamic linker would read from a program or library.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Dynamic {
    pub(crate) interpreter: Option<String>,
    pub(crate) needed: Vec<String>,
    pub(crate) search: Vec<String>,
    pub(crate) soname: Option<String>,
}

/// `None` when the file is no x86-64 ELF file.
pub(crate) fn dynamic(path: &Path) -> Option<Dynamic> {
    let file = File::open(path).ok()?;
    let head = part(&file, 0, 64)?;
    if !is_elf64(&head) || u16_at(&head, 18)? != X86_64 {
        return None;
    }
    let (offset, size, count) =
        (u64_at(&head, 32)?, u64::from(u16_at(&head, 54)?), u64::from(u16_at(&head, 56)?));
    let table = part(&file, offset, size.checked_mul(count)?)?;
    let mut loads = Vec::new();
    let mut entries = Vec::new();
    let mut found = Dynamic::default();
    for row in table.chunks_exact(usize::try_from(size).ok().filter(|s| *s >= 56)?) {
        let (kind, at, address, length) =
            (u32_at(row, 0)?, u64_at(row, 8)?, u64_at(row, 16)?, u64_at(row, 32)?);
        match kind {
            PT_LOAD => loads.push((address, length, at)),
            PT_DYNAMIC => entries = part(&file, at, length)?,
            PT_INTERP => found.interpreter = text(&part(&file, at, length)?, 0),
            _ => {}
        }
    }
    let pairs: Vec<(u64, u64)> = entries
        .chunks_exact(16)
        .map_while(|row| Some((u64_at(row, 0)?, u64_at(row, 8)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let Some((_, strings_address)) = pairs.iter().find(|(tag, _)| *tag == DT_STRTAB) else {
        return Some(found);
    };
    let strings_at = loads.iter().find_map(|(address, length, at)| {
        let within = strings_address.checked_sub(*address)?;
        (within < *length).then(|| at.checked_add(within)).flatten()
    })?;
    let string = |at: u64| string_at(&file, strings_at.checked_add(at)?);
    for (tag, value) in pairs {
        match tag {
            DT_NEEDED => found.needed.push(string(value)?),
            DT_SONAME => found.soname = Some(string(value)?),
            DT_RPATH | DT_RUNPATH => found.search.extend(string(value)?.split(':').map(str::to_owned)),
            _ => {}
        }
    }
    Some(found)
}

/// Content of a section of an ELF file held in memory.
pub(crate) fn section<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !is_elf64(bytes) {
        return None;
    }
    let (offset, size, count, names) = (
        size_at(bytes, 40)?,
        usize::from(u16_at(bytes, 58)?),
        usize::from(u16_at(bytes, 60)?),
        usize::from(u16_at(bytes, 62)?),
    );
    let row = |index: usize| bytes.get(offset.checked_add(index.checked_mul(size)?)?..)?.get(..size);
    let content = |row: &[u8]| {
        let at = size_at(row, 24)?;
        bytes.get(at..at.checked_add(size_at(row, 32)?)?)
    };
    let strings = content(row(names)?)?;
    (0..count)
        .filter_map(row)
        .find(|row| u32_at(row, 0).and_then(|at| text(strings, at as usize)).as_deref() == Some(name))
        .and_then(content)
}

pub(crate) fn is_elf64(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

fn string_at(file: &File, at: u64) -> Option<String> {
    let mut buffer = vec![0; 4096];
    let read = file.read_at(&mut buffer, at).ok()?;
    buffer.truncate(read);
    text(&buffer, 0)
}

fn part(file: &File, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(length).ok().filter(|_| length <= MAX_PART)?];
    file.read_exact_at(&mut buffer, at).ok()?;
    Some(buffer)
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let tail = bytes.get(at..)?;
    let end = tail.iter().position(|b| *b == 0)?;
    String::from_utf8(tail[..end].to_vec()).ok()
}

fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64_at(bytes, at)?).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dynamic_program_names_its_libraries_and_linker() {
        let own = dynamic(Path::new("/proc/self/exe")).unwrap();
        assert!(own.needed.iter().any(|name| name.starts_with("libc.so")), "{own:?}");
        assert!(own.interpreter.unwrap().contains("ld-linux"));
    }

    #[test]
    fn sections_are_found_by_name() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(
            section(&own, ".interp").is_some_and(|s| s.starts_with(b"/"))
                && section(&own, ".nothing").is_none()
        );
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(cut in 0usize..4096, flips in proptest::collection::vec((0usize..4096, any::<u8>()), 0..40)) {
            let mut bytes = vec![0; 4096];
            std::os::unix::fs::FileExt::read_at(&File::open("/proc/self/exe").unwrap(), &mut bytes, 0).unwrap();
            for (at, value) in flips { bytes[at] = value; }
            bytes.truncate(cut);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            dynamic(file.path());
            section(&bytes, ".modinfo");
        }
    }
}
