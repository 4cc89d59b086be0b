//! Gives the screen another size (RandR 1.2).

use polydev_core::desktop::SIDE;
use x11rb::{
    CURRENT_TIME,
    connection::Connection as _,
    errors::ReplyError,
    protocol::{
        randr::{ConnectionExt as _, ModeInfo, Rotation, SetConfig},
        xproto::{ConnectionExt as _, Window},
    },
    rust_connection::RustConnection,
};

use super::screen::ScreenError;

/// Most pixels: what the encoder manages on one core, and what a page sees sharply.
const AREA_MAX: u32 = 2560 * 1600;
/// Longest and shortest side the encoder takes.
const SIDES_MAX: (u16, u16) = (3840, 2160);
/// How often the display says it is refreshed. A browser that scrolls paints in this rhythm; at 60, as X servers without a
/// cable have it, the painting of pictures that nobody sees takes the time of those that are sent.
const REFRESH_HZ: u32 = 30;
/// Name of the mode that is made for each size.
const MODE: &str = "polydev";
/// A quarter of a millimetre per pixel, about 96 dots per inch.
const MM_PER_PIXEL: (u32, u32) = (254, 960);

/// The size that a wish becomes: even, and scaled down to what the encoder can do.
pub(crate) fn allowed(width: u16, height: u16) -> (u16, u16) {
    let (long, short) = (width.max(height), width.min(height));
    let area = u32::from(width) * u32::from(height);
    let shrink = [
        f64::from(SIDES_MAX.0) / f64::from(long),
        f64::from(SIDES_MAX.1) / f64::from(short),
        (f64::from(AREA_MAX) / f64::from(area)).sqrt(),
    ]
    .into_iter()
    .fold(1.0, f64::min);
    let side = |side: u16| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most what it was")]
        let side = (f64::from(side) * shrink) as u16;
        (side & !1).max(*SIDE.start())
    };
    (side(width), side(height))
}

/// Has the display refreshed no more often than is of use. It keeps its size.
pub(crate) fn set_refresh(x: &RustConnection, root: Window) -> Result<(), ScreenError> {
    let geometry = x.get_geometry(root)?.reply()?;
    resize(x, root, geometry.width, geometry.height)
}

/// Sets the size. An X server that cannot has the size it had.
pub(crate) fn resize(x: &RustConnection, root: Window, width: u16, height: u16) -> Result<(), ScreenError> {
    // The window manager must not look while there is no picture.
    x.grab_server()?;
    let done = resize_grabbed(x, root, width, height);
    x.ungrab_server()?;
    x.flush()?;
    done
}

fn resize_grabbed(x: &RustConnection, root: Window, width: u16, height: u16) -> Result<(), ScreenError> {
    let resources = x.randr_get_screen_resources_current(root)?.reply()?;
    let stamp = resources.config_timestamp;
    let (Some(&output), Some(&crtc)) = (resources.outputs.first(), resources.crtcs.first()) else {
        return Ok(());
    };
    let before = x.randr_get_crtc_info(crtc, stamp)?.reply()?;
    let geometry = x.get_geometry(root)?.reply()?;
    let mode = make_mode(x, root, width, height)?;
    if before.mode == mode && (geometry.width, geometry.height) == (width, height) {
        // Of an earlier stream: setting it again would wipe what is shown.
        return Ok(());
    }
    x.randr_add_output_mode(output, mode)?.check()?;
    // No picture may reach over the edge of the new screen.
    x.randr_set_crtc_config(crtc, CURRENT_TIME, stamp, 0, 0, x11rb::NONE, Rotation::ROTATE0, &[])?.reply()?;
    let sized = set_size(x, root, width, height);
    let mode_now = if sized.is_ok() { mode } else { before.mode };
    let set = x
        .randr_set_crtc_config(crtc, CURRENT_TIME, stamp, 0, 0, mode_now, Rotation::ROTATE0, &[output])?
        .reply()?;
    // Modes of earlier sizes; the one in use is kept by the server.
    for old in resources.modes.iter().map(|mode| mode.id).filter(|id| *id == before.mode || sized.is_err()) {
        if old != mode_now && is_ours(&resources.names, &resources.modes, old) {
            x.randr_delete_output_mode(output, old)?.ignore_error();
            x.randr_destroy_mode(old)?.ignore_error();
        }
    }
    if sized.is_err() {
        x.randr_delete_output_mode(output, mode)?.ignore_error();
        x.randr_destroy_mode(mode)?.ignore_error();
    }
    sized?;
    if set.status != SetConfig::SUCCESS {
        set_size(x, root, geometry.width, geometry.height)?;
    }
    Ok(())
}

fn set_size(x: &RustConnection, root: Window, width: u16, height: u16) -> Result<(), ReplyError> {
    let mm = |side: u16| u32::from(side) * MM_PER_PIXEL.0 / MM_PER_PIXEL.1;
    x.randr_set_screen_size(root, width, height, mm(width), mm(height))?.check()
}

fn make_mode(x: &RustConnection, root: Window, width: u16, height: u16) -> Result<u32, ScreenError> {
    let name = format!("{MODE}-{width}x{height}");
    let resources = x.randr_get_screen_resources_current(root)?.reply()?;
    let mut names = &resources.names[..];
    for mode in &resources.modes {
        let (this, rest) = names.split_at(usize::from(mode.name_len).min(names.len()));
        if this == name.as_bytes() {
            return Ok(mode.id);
        }
        names = rest;
    }
    // A display without a cable has no timing; the numbers only have to be consistent.
    let info = ModeInfo {
        width,
        height,
        dot_clock: u32::from(width) * u32::from(height) * REFRESH_HZ,
        hsync_start: width,
        hsync_end: width,
        htotal: width,
        vsync_start: height,
        vsync_end: height,
        vtotal: height,
        name_len: u16::try_from(name.len()).unwrap_or(u16::MAX),
        ..ModeInfo::default()
    };
    Ok(x.randr_create_mode(root, info, name.as_bytes())?.reply()?.mode)
}

fn is_ours(names: &[u8], modes: &[ModeInfo], id: u32) -> bool {
    let mut names = names;
    for mode in modes {
        let (this, rest) = names.split_at(usize::from(mode.name_len).min(names.len()));
        if mode.id == id {
            return this.starts_with(MODE.as_bytes());
        }
        names = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_even_and_what_the_encoder_can_do() {
        assert_eq!(allowed(1280, 720), (1280, 720));
        assert_eq!(allowed(1281, 721), (1280, 720));
        assert_eq!(allowed(390, 844), (390, 844));
        assert_eq!(allowed(4096, 320), (3840, 320));
        let (width, height) = allowed(4096, 4096);
        assert_eq!(width, height);
        assert!(u32::from(width) * u32::from(height) <= AREA_MAX);
        let (width, height) = allowed(1440, 3120);
        assert!(u32::from(width) * u32::from(height) <= AREA_MAX && width * 2 < height);
    }
}
