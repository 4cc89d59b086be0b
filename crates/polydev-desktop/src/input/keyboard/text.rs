//! Texts, typed one character after the other.

use super::{Held, InputError, Keyboard, Meaning, keysym};
use crate::input::display::Display;

impl Keyboard {
    /// Types a text without the modifiers that the person holds. Whether all of it could be typed.
    pub(in crate::input) fn text(&mut self, display: &mut Display, text: &str) -> Result<bool, InputError> {
        if !self.renew(display)? {
            return Ok(false);
        }
        let mut lifted: Vec<u8> = Vec::new();
        for key in &self.held {
            if self.keymap.mods(key.keycode) != 0 && !lifted.contains(&key.keycode) {
                lifted.push(key.keycode);
            }
        }
        lifted.iter().rev().try_for_each(|keycode| display.key(*keycode, false))?;
        let done = self.type_all(display, &meanings(text));
        lifted.iter().try_for_each(|keycode| display.key(*keycode, true))?;
        done
    }

    fn type_all(&mut self, display: &mut Display, text: &[Meaning]) -> Result<bool, InputError> {
        let mut all = true;
        let mut rest = text;
        while !rest.is_empty() {
            let Some(count) = self.prepare(display, rest)? else { return Ok(false) };
            let (now, later) = rest.split_at(count);
            for meaning in now {
                all &= self.type_one(display, *meaning)?;
            }
            rest = later;
        }
        Ok(all)
    }

    /// Makes as much of the beginning typeable as there are spare keys for, and says how much; `None` if there is none, or the program that
    /// is typed to hangs.
    fn prepare(&mut self, display: &mut Display, text: &[Meaning]) -> Result<Option<usize>, InputError> {
        let held = self.held_locks();
        let room = self.spares.room(|keycode, _| self.is_down(keycode));
        let (mut wanted, mut missing) = (Vec::new(), Vec::new());
        let mut count = 0;
        for meaning in text {
            if let Meaning::Character(character) = meaning {
                let way = self.keymap.character(*character, held, None);
                let keysym = keysym::keysym_of(*character);
                if way.is_none_or(|way| self.spares.has(way.keycode)) && !wanted.contains(&keysym) {
                    if wanted.len() == room {
                        break;
                    }
                    wanted.push(keysym);
                    if way.is_none() {
                        missing.push(keysym);
                    }
                }
            }
            count += 1;
        }
        if count == 0 || (!missing.is_empty() && !self.lend(display, &missing, &wanted)?) {
            return Ok(None);
        }
        Ok(Some(count))
    }

    fn type_one(&mut self, display: &Display, meaning: Meaning) -> Result<bool, InputError> {
        let held = self.held_locks();
        let way = match meaning {
            Meaning::Character(character) => self.keymap.character(character, held, None),
            Meaning::Named(keysym) => self.keymap.named(keysym, held),
            Meaning::Modifier(_) | Meaning::Swallowed | Meaning::Nothing => None,
        };
        let Some(way) = way else { return Ok(false) };
        if self.is_down(way.keycode) {
            display.key(way.keycode, false)?;
        }
        self.press(display, way)?;
        display.key(way.keycode, false)?;
        Ok(true)
    }

    fn held_locks(&self) -> Held {
        Held { mods: self.locked, locked: self.locked }
    }
}

/// What to type for a text; each kind of line end is one Enter.
fn meanings(text: &str) -> Vec<Meaning> {
    let lines = text.replace("\r\n", "\n").replace('\r', "\n");
    lines.chars().map(Meaning::of_char).collect()
}
