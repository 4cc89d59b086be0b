//! A barcode on an X display that tells the time, so that a page can tell how old the picture is that it shows.
//!
//! 30 cells of 8x16 pixels at (16,16): white, 28 bits with the lowest first, black. 20 bits are Unix milliseconds, 8 are
//! a checksum of these. `bench/desktop/page/barcode.js` reads it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use x11rb::{
    COPY_DEPTH_FROM_PARENT,
    connection::Connection,
    protocol::xproto::{
        ConfigureWindowAux, ConnectionExt, CreateGCAux, CreateWindowAux, Pixmap, Rectangle, StackMode,
        Window, WindowClass,
    },
    rust_connection::RustConnection,
};

use super::display::{Display, Shown};
use crate::random::Random;

const CELL: (u16, u16) = (8, 16);
const BITS: u16 = 28;
const TIME_BITS: u32 = 20;
const AT: (i16, i16) = (16, 16);
/// Not in step with any display's refresh.
const EVERY: Duration = Duration::from_millis(100);
const JITTER: f64 = 0.2;

/// The bits that stand for a Unix time in milliseconds.
pub(super) fn bits(now_ms: u64) -> u32 {
    let time = u32::try_from(now_ms % (1 << TIME_BITS)).expect("it has 20 bits");
    time | u32::from(checksum(time)) << TIME_BITS
}

/// CRC-8 with polynomial 0x07 over the three bytes of the time, lowest first.
fn checksum(time: u32) -> u8 {
    time.to_le_bytes()[..3].iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x07 })
    })
}

/// Draws until it is dropped.
pub(super) fn show(display: &Display) -> Result<Shown> {
    let (connection, screen) = display.connect()?;
    let board = Board::new(&connection, screen).context("show the barcode")?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::spawn(move || {
        let mut random = Random::new(1);
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            // An X server that went away ends this, and shows as barcodes that no longer come.
            if board.draw(&connection).is_err() {
                break;
            }
            let pause = EVERY.mul_f64(1.0 + JITTER * (2.0 * random.unit() - 1.0));
            thread::sleep(pause.saturating_sub(began.elapsed()));
        }
        let _ = connection.destroy_window(board.window);
        let _ = connection.flush();
    });
    Ok(Shown::new(stop, thread))
}

struct Board {
    window: Window,
    /// Drawn on first: the window changes in one request, so that no capture sees half of it.
    draft: Pixmap,
    white: u32,
    black: u32,
}

impl Board {
    fn new(connection: &RustConnection, screen: usize) -> Result<Self> {
        let screen = &connection.setup().roots[screen];
        let (width, height) = (CELL.0 * (BITS + 2), CELL.1);
        let window = connection.generate_id()?;
        let look = CreateWindowAux::new().override_redirect(1).background_pixel(screen.black_pixel);
        connection.create_window(
            COPY_DEPTH_FROM_PARENT,
            window,
            screen.root,
            AT.0,
            AT.1,
            width,
            height,
            0,
            WindowClass::INPUT_OUTPUT,
            screen.root_visual,
            &look,
        )?;
        connection.map_window(window)?;
        let draft = connection.generate_id()?;
        connection.create_pixmap(screen.root_depth, draft, window, width, height)?;
        let (white, black) = (connection.generate_id()?, connection.generate_id()?);
        let quiet = CreateGCAux::new().graphics_exposures(0);
        connection.create_gc(white, draft, &quiet.foreground(screen.white_pixel))?;
        connection.create_gc(black, draft, &quiet.foreground(screen.black_pixel))?;
        Ok(Self { window, draft, white, black })
    }

    fn draw(&self, connection: &RustConnection) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let bits = bits(u64::try_from(now.as_millis())?);
        let cell = |index: u16| Rectangle {
            x: i16::try_from(index * CELL.0).expect("the barcode is small"),
            y: 0,
            width: CELL.0,
            height: CELL.1,
        };
        let lit = (0..BITS).filter(|bit| bits >> bit & 1 == 1).map(|bit| cell(bit + 1));
        let white: Vec<Rectangle> = [cell(0)].into_iter().chain(lit).collect();
        let (width, height) = (CELL.0 * (BITS + 2), CELL.1);
        connection.poly_fill_rectangle(self.draft, self.black, &[Rectangle { x: 0, y: 0, width, height }])?;
        connection.poly_fill_rectangle(self.draft, self.white, &white)?;
        // The guest's browser may open a window later.
        connection.configure_window(self.window, &ConfigureWindowAux::new().stack_mode(StackMode::ABOVE))?;
        connection.copy_area(self.draft, self.window, self.white, 0, 0, 0, 0, width, height)?;
        connection.get_input_focus()?.reply()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::with_node;

    #[test]
    fn the_page_reads_the_time_that_was_drawn_and_nothing_else() {
        let times: [u64; 6] = [0, 1, 0x000f_ffff, 0x0010_0000, 1_795_329_213_123, 1_795_329_999_999];
        let drawn: Vec<u32> = times.iter().map(|time| bits(*time)).collect();
        let script = format!(
            "{}\nconst drawn = {drawn:?};\n\
             const cells = (bits) => (x) => {{ const cell = Math.floor(x / 8); \
               return cell === 0 || (cell < 29 && (bits >>> (cell - 1) & 1) === 1); }};\n\
             const read = drawn.map((bits) => barcode.read(cells(bits)));\n\
             const flipped = drawn.flatMap((bits) => [...Array(28).keys()].map((bit) => barcode.read(cells(bits ^ (1 << bit)))));\n\
             const dark = barcode.read(() => false);\n\
             const ages = [barcode.age(1048570, 1048580), barcode.age(5, 0)];\n\
             console.log(JSON.stringify({{ read, flipped: flipped.every((time) => time === null), dark, ages }}));",
            std::fs::read_to_string(crate::repo::root().join("bench/desktop/page/barcode.js"))
                .expect("the page's half is there"),
        );
        let output = with_node("node").args(["-e", &script]).output().expect("node runs");
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let expected: Vec<u64> = times.iter().map(|time| time % (1 << TIME_BITS)).collect();
        assert_eq!(
            seen,
            serde_json::json!({ "read": expected, "flipped": true, "dark": null, "ages": [10, -5] })
        );
    }
}
