//! Moves, buttons and the wheel.

use std::cmp::Ordering;

use polydev_core::desktop::input::WHEEL_NOTCH;
use x11rb::protocol::xproto::{ConnectionExt as _, KeyButMask};

use super::{InputError, display::Display};

/// Buttons that a core pointer reports as held; an earlier process may have left one down.
const REPORTED: [(u8, KeyButMask); 3] =
    [(1, KeyButMask::BUTTON1), (2, KeyButMask::BUTTON2), (3, KeyButMask::BUTTON3)];

/// One direction pair of the wheel and the buttons that stand for it (X11 knows no finer wheel through XTEST: its
/// device has no scroll axes, so parts of a notch wait until they are a whole one).
#[derive(Debug)]
struct Axis {
    /// Button for towards smaller, and towards larger values.
    buttons: (u8, u8),
    rest: i32,
}

/// The hand on the mouse.
#[derive(Debug)]
pub(super) struct Pointer {
    held: Vec<u8>,
    across: Axis,
    along: Axis,
}

impl Pointer {
    /// Lets go of what an earlier process may have left held.
    pub(super) fn new(display: &Display) -> Result<Self, InputError> {
        let mask = display.connection().query_pointer(display.root())?.reply()?.mask;
        for (button, bit) in REPORTED {
            if mask.contains(bit) {
                display.button(button, false)?;
            }
        }
        Ok(Self {
            held: Vec::new(),
            across: Axis { buttons: (6, 7), rest: 0 },
            along: Axis { buttons: (4, 5), rest: 0 },
        })
    }

    pub(super) fn go(&mut self, display: &Display, x: u16, y: u16) -> Result<(), InputError> {
        display.move_to(x, y)
    }

    pub(super) fn button(
        &mut self,
        display: &Display,
        button: u8,
        down: bool,
        x: u16,
        y: u16,
    ) -> Result<(), InputError> {
        display.move_to(x, y)?;
        let held = self.held.iter().position(|held| *held == button);
        match (held, down) {
            (None, true) => self.held.push(button),
            (Some(place), false) => drop(self.held.swap_remove(place)),
            // It is where it should be. A second press without a release would be none to programs.
            (Some(_), true) | (None, false) => return Ok(()),
        }
        display.button(button, down)
    }

    pub(super) fn wheel(
        &mut self,
        display: &Display,
        dx: i16,
        dy: i16,
        x: u16,
        y: u16,
    ) -> Result<(), InputError> {
        display.move_to(x, y)?;
        for (axis, delta) in [(&mut self.across, dx), (&mut self.along, dy)] {
            let (button, clicks) = axis.turn(delta);
            for _ in 0..clicks {
                display.button(button, true)?;
                display.button(button, false)?;
            }
        }
        Ok(())
    }

    pub(super) fn release_all(&mut self, display: &Display) -> Result<(), InputError> {
        self.across.rest = 0;
        self.along.rest = 0;
        self.held.drain(..).try_for_each(|button| display.button(button, false))
    }
}

impl Axis {
    /// The button that stands for the direction, and how often it clicks now.
    fn turn(&mut self, delta: i16) -> (u8, u32) {
        let delta = i32::from(delta);
        if delta.signum() * self.rest.signum() < 0 {
            self.rest = 0;
        }
        self.rest += delta;
        let clicks = self.rest / i32::from(WHEEL_NOTCH);
        self.rest %= i32::from(WHEEL_NOTCH);
        let button = match clicks.cmp(&0) {
            Ordering::Less => self.buttons.0,
            Ordering::Equal | Ordering::Greater => self.buttons.1,
        };
        (button, clicks.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_notch_add_up_until_the_direction_changes() {
        let mut axis = Axis { buttons: (4, 5), rest: 0 };
        let turns = [(40, 0), (40, 0), (40, 1), (100, 0), (-30, 0), (-90, 1), (300, 2), (60, 1), (-600, 5)];
        for (delta, clicks) in turns {
            let (button, seen) = axis.turn(delta);
            assert_eq!(seen, clicks, "{delta}");
            assert_eq!(button, if clicks > 0 && delta < 0 { 4 } else { 5 }, "{delta}");
        }
    }

    #[test]
    fn the_longest_turn_does_not_overflow() {
        let mut axis = Axis { buttons: (4, 5), rest: 0 };
        assert_eq!(axis.turn(i16::MIN), (4, 273));
        assert_eq!(axis.turn(i16::MAX), (5, 273));
    }
}
