// Reads the barcode that xtask/src/bench/desktop/barcode.rs draws: 30 cells of 8x16 pixels, white, 28 bits with the lowest
// first, black. 20 bits are Unix milliseconds, 8 are a checksum of these.
(() => {
  const CELL = 8;
  const BITS = 28;
  const TIME_BITS = 20;
  const WRAP = 2 ** TIME_BITS;
  const WHITE = 127;

  /** CRC-8 with polynomial 0x07 over the three bytes of the time, lowest first. */
  const checksum = (time) => {
    let crc = 0;
    for (const byte of [time & 0xff, (time >> 8) & 0xff, time >> 16]) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x80 ? ((crc << 1) ^ 0x07) & 0xff : crc << 1;
    }
    return crc;
  };

  globalThis.barcode = {
    width: (BITS + 2) * CELL,
    height: 16,
    checksum,
    /** The time in a row of cells, given whether the pixel at a distance from the left is white; `null` if it is none. */
    read(isWhite) {
      const cell = (index) => isWhite(index * CELL + CELL / 2);
      if (!cell(0) || cell(BITS + 1)) return null;
      let bits = 0;
      for (let bit = 0; bit < BITS; bit += 1) if (cell(bit + 1)) bits += 2 ** bit;
      const time = bits % WRAP;
      return checksum(time) === Math.floor(bits / WRAP) ? time : null;
    },
    /** Milliseconds from the time in a barcode until `now`, a Unix time: within half a wrap of zero. */
    age(time, now) {
      const behind = (((now - time) % WRAP) + WRAP) % WRAP;
      return behind > WRAP / 2 ? behind - WRAP : behind;
    },
    isWhite: (level) => level > WHITE,
  };
})();
