//! Tells programs how large to draw: as the display's settings manager (XSETTINGS 0.5, freedesktop.org).

use polydev_core::desktop::SCALE;
use x11rb::{
    CURRENT_TIME,
    connection::Connection as _,
    protocol::xproto::{
        ClientMessageEvent, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Window, WindowClass,
    },
    rust_connection::RustConnection,
};

use super::{orders::ScreenWish, screen::ScreenError};

/// Dots per inch at 100 percent.
const DPI: i32 = 96;
/// The setting is in parts of a dot.
const DPI_PARTS: i32 = 1024;
/// Chromium's windows are no narrower than so many pixels of its content: on a narrower screen a part of them would lie
/// beside it.
const WINDOW_WIDTH_MIN: u32 = 500;
const LSB_FIRST: u8 = 0;
const INTEGER: u8 = 0;

x11rb::atom_manager! {
    /// Names of the protocol.
    Names: NamesCookie {
        _XSETTINGS_S0,
        _XSETTINGS_SETTINGS,
        MANAGER,
    }
}

/// The settings manager.
pub(crate) struct Scale<'a> {
    x: &'a RustConnection,
    names: Names,
    window: Window,
    percent: u16,
    serial: u32,
}

impl<'a> Scale<'a> {
    /// Becomes the settings manager, with content at 100 percent.
    pub(crate) fn claim(x: &'a RustConnection, root: Window) -> Result<Self, ScreenError> {
        let names = Names::new(x)?.reply()?;
        let window = x.generate_id()?;
        let plain = CreateWindowAux::new().override_redirect(1);
        x.create_window(0, window, root, -1, -1, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &plain)?.check()?;
        let scale = Self { x, names, window, percent: 100, serial: 0 };
        scale.publish()?;
        x.set_selection_owner(window, names._XSETTINGS_S0, CURRENT_TIME)?.check()?;
        let data = [CURRENT_TIME, names._XSETTINGS_S0, window, 0, 0];
        let here = ClientMessageEvent::new(32, root, names.MANAGER, data);
        x.send_event(false, root, EventMask::STRUCTURE_NOTIFY, here)?.check()?;
        Ok(scale)
    }

    /// Programs draw their content at so many percent from now on.
    pub(crate) fn set(&mut self, percent: u16) -> Result<(), ScreenError> {
        if percent == self.percent {
            return Ok(());
        }
        self.percent = percent;
        self.serial += 1;
        self.publish()
    }

    fn publish(&self) -> Result<(), ScreenError> {
        let name = self.names._XSETTINGS_SETTINGS;
        let settings = settings(self.serial, self.percent);
        let len = u32::try_from(settings.len()).unwrap_or(0);
        self.x.change_property(PropMode::REPLACE, self.window, name, name, 8, len, &settings)?.check()?;
        Ok(())
    }
}

/// The scale for a screen that became so wide, at which a browser's window is not wider than it.
pub(crate) fn fitting(width: u16, wish: ScreenWish) -> u16 {
    // A screen that was made smaller than the wish shows the same content in fewer pixels.
    let wished = u32::from(wish.scale) * u32::from(width) / u32::from(wish.width.max(1));
    let most = u32::from(width) * 100 / WINDOW_WIDTH_MIN;
    u16::try_from(wished.min(most)).unwrap_or(wish.scale).max(*SCALE.start())
}

/// The value of the property: one setting.
fn settings(serial: u32, percent: u16) -> Vec<u8> {
    let name = b"Xft/DPI";
    let dpi = DPI * DPI_PARTS * i32::from(percent) / 100;
    let mut out = vec![LSB_FIRST, 0, 0, 0];
    out.extend(serial.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.extend([INTEGER, 0]);
    out.extend(u16::try_from(name.len()).unwrap_or(0).to_le_bytes());
    out.extend(name);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(serial.to_le_bytes());
    out.extend(dpi.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_screen_still_has_room_for_a_window() {
        let wish = |width, scale| ScreenWish { width, height: 800, scale };
        assert_eq!(fitting(1280, wish(1280, 200)), 200);
        assert_eq!(fitting(780, wish(780, 200)), 156);
        assert_eq!(fitting(390, wish(390, 100)), 78);
        assert_eq!(fitting(320, wish(320, 50)), 50);
        // Half the pixels, half the scale.
        assert_eq!(fitting(1920, wish(3840, 200)), 100);
    }

    #[test]
    fn the_setting_has_the_documented_layout() {
        let expected = [
            &[0, 0, 0, 0][..],
            &[3, 0, 0, 0],
            &[1, 0, 0, 0],
            &[0, 0, 7, 0],
            b"Xft/DPI\0",
            &[3, 0, 0, 0],
            &(144 * 1024_i32).to_le_bytes(),
        ];
        assert_eq!(settings(3, 150), expected.concat());
    }
}
