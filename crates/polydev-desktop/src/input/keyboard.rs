//! Keys and texts.

mod text;

use x11rb::{
    protocol::{
        Event,
        xkb::{self, ConnectionExt as _, EventType, MapPart, SelectEventsAux},
        xproto::{AtomEnum, ConnectionExt as _, PropMode},
    },
    wrapper::ConnectionExt as _,
};

use super::{
    InputError,
    display::Display,
    keymap::{Held, Keymap, Way, mods},
    keysym::{self, Meaning},
    settle::{EVENTS_READ, MAP_KNOWN, Settler},
    spare::Spares,
};

/// On the root window: keycodes that were spare when the first process came, so that a later one knows which keys were
/// lent and not given back.
const SPARE_KEYS: &[u8] = b"_POLYDEV_SPARE_KEYS";
/// All keyboards of the server as one.
const CORE: u16 = 0x100;
/// Levels of a lent key: with Shift and without it is the same.
const LEVELS: u8 = 2;

/// A key that the person holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeldKey {
    code: String,
    keysym: u32,
    keycode: u8,
}

/// The hands on the keyboard.
#[derive(Debug)]
pub(super) struct Keyboard {
    keymap: Keymap,
    spares: Spares,
    settler: Settler,
    held: Vec<HeldKey>,
    /// Locked and latched modifiers of the server.
    locked: u8,
    /// The map may have changed.
    stale: bool,
    /// Whether the program with the focus has been given the time to learn of the map as it is.
    known: bool,
}

impl Keyboard {
    /// Reads the map, takes over what an earlier process lent and lets go of what it held.
    pub(super) fn new(display: &Display) -> Result<Self, InputError> {
        let x = display.connection();
        x.xkb_use_extension(1, 0)?.reply()?;
        let events = EventType::NEW_KEYBOARD_NOTIFY | EventType::STATE_NOTIFY;
        let parts = MapPart::KEY_TYPES | MapPart::KEY_SYMS | MapPart::MODIFIER_MAP;
        x.xkb_select_events(CORE, 0_u16.into(), events, parts, parts, &SelectEventsAux::new())?.check()?;
        let mut keyboard = Self {
            keymap: Keymap::default(),
            spares: Spares::default(),
            settler: Settler::new(display)?,
            held: Vec::new(),
            locked: 0,
            stale: false,
            known: true,
        };
        keyboard.keymap = keyboard.read(display)?;
        keyboard.take_over(display)?;
        keyboard.keymap = keyboard.read(display)?;
        keyboard.release_strays(display)?;
        let state = x.xkb_get_state(CORE)?.reply()?;
        let (locked, latched) = (mods::bits(state.locked_mods), mods::bits(state.latched_mods));
        keyboard.state(display, locked, latched, u8::from(state.group))?;
        Ok(keyboard)
    }

    /// Takes note of what happened on the display.
    pub(super) fn notice(&mut self, display: &mut Display) -> Result<(), InputError> {
        while let Some(event) = display.event()? {
            match event {
                Event::MappingNotify(_) | Event::XkbMapNotify(_) | Event::XkbNewKeyboardNotify(_) => {
                    self.stale = true;
                }
                Event::XkbStateNotify(state) => {
                    let (locked, latched) = (mods::bits(state.locked_mods), mods::bits(state.latched_mods));
                    self.state(display, locked, latched, u8::from(state.group))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Presses a key, or presses it again if it is held. Whether that could be done.
    pub(super) fn down(
        &mut self,
        display: &mut Display,
        keysym: u32,
        code: &str,
    ) -> Result<bool, InputError> {
        let meaning = Meaning::of(keysym);
        match meaning {
            Meaning::Swallowed => return Ok(true),
            Meaning::Nothing => return Ok(false),
            Meaning::Character(_) | Meaning::Modifier(_) | Meaning::Named(_) => {}
        }
        if !self.renew(display)? {
            return Ok(false);
        }
        let before = self.place(keysym, code).map(|place| self.held.remove(place));
        if let Some(before) = &before
            && self.keymap.mods(before.keycode) != 0
            && before.keysym == keysym
        {
            self.held.push(before.clone());
            return Ok(true);
        }
        let Some(way) = self.way(display, meaning, code)? else {
            self.release(display, before)?;
            return Ok(false);
        };
        let again = before.as_ref().is_some_and(|before| before.keycode == way.keycode);
        if !again {
            self.release(display, before)?;
        }
        // The server takes no second press of a key that is down: a repetition is a release and a press.
        if again || self.is_down(way.keycode) {
            display.key(way.keycode, false)?;
        }
        self.press(display, way)?;
        self.held.push(HeldKey { code: code.to_owned(), keysym, keycode: way.keycode });
        Ok(true)
    }

    /// Lets go of exactly what the press of this key pressed.
    pub(super) fn up(&mut self, display: &Display, keysym: u32, code: &str) -> Result<(), InputError> {
        let key = self.place(keysym, code).map(|place| self.held.remove(place));
        self.release(display, key)
    }

    /// Lets go of every key: modifiers last, so that no key is let go without those it was pressed with.
    pub(super) fn release_all(&mut self, display: &Display) -> Result<(), InputError> {
        let mut held = std::mem::take(&mut self.held);
        held.sort_by_key(|key| self.keymap.mods(key.keycode) != 0);
        held.into_iter().try_for_each(|key| display.key(key.keycode, false))
    }

    /// Lets go of keys that something else pressed, such as an earlier process.
    pub(super) fn release_strays(&mut self, display: &Display) -> Result<(), InputError> {
        let down = display.connection().query_keymap()?.reply()?.keys;
        let pressed = |keycode: &u8| down[usize::from(keycode / 8)] & (1 << (keycode % 8)) != 0;
        (0..=u8::MAX).filter(pressed).try_for_each(|keycode| display.key(keycode, false))
    }

    /// Keeps the server on its first layout without CapsLock: characters arrive as they are meant.
    fn state(&mut self, display: &Display, locked: u8, latched: u8, group: u8) -> Result<(), InputError> {
        if locked & mods::LOCK != 0 || group != 0 || latched != 0 {
            let (lock, none) = (u16::from(mods::LOCK).into(), 0_u16.into());
            let latches = u16::from(u8::MAX).into();
            display
                .connection()
                .xkb_latch_lock_state(CORE, lock, none, true, xkb::Group::M1, latches, true, 0)?
                .ignore_error();
        }
        self.locked = locked & !mods::LOCK;
        Ok(())
    }

    fn held_mods(&self) -> Held {
        let mods = self.held.iter().map(|key| self.keymap.mods(key.keycode)).fold(self.locked, |a, b| a | b);
        Held { mods, locked: self.locked }
    }

    /// Which of the held keys is meant: by its code, without one by its keysym.
    fn place(&self, keysym: u32, code: &str) -> Option<usize> {
        self.held.iter().position(|key| {
            if code.is_empty() || key.code.is_empty() { key.keysym == keysym } else { key.code == code }
        })
    }

    fn is_down(&self, keycode: u8) -> bool {
        self.held.iter().any(|key| key.keycode == keycode)
    }

    fn release(&self, display: &Display, key: Option<HeldKey>) -> Result<(), InputError> {
        match key {
            // Two keys of the person may be one of the server.
            Some(key) if !self.is_down(key.keycode) => display.key(key.keycode, false),
            Some(_) | None => Ok(()),
        }
    }

    /// How to press a key, after making it possible.
    fn way(
        &mut self,
        display: &mut Display,
        meaning: Meaning,
        code: &str,
    ) -> Result<Option<Way>, InputError> {
        let held = self.held_mods();
        let bare = |keycode| Way { keycode, press: 0, lift: 0 };
        Ok(match meaning {
            Meaning::Modifier(keysym) => self.keymap.modifier(keysym).map(bare),
            Meaning::Named(keysym) => match self.keymap.named(keysym, held) {
                Some(way) => Some(way),
                None if self.lend(display, &[keysym], &[])? => self.keymap.named(keysym, held),
                None => None,
            },
            Meaning::Character(character) => {
                if let Some(keycode) = self.shortcut(character, held, code) {
                    return Ok(Some(bare(keycode)));
                }
                let pressed = keysym::position(code);
                match self.keymap.character(character, held, pressed) {
                    Some(way) => Some(way),
                    None if self.lend(display, &[keysym::keysym_of(character)], &[])? => {
                        self.keymap.character(character, held, pressed)
                    }
                    None => None,
                }
            }
            Meaning::Swallowed | Meaning::Nothing => None,
        })
    }

    /// The key of a shortcut: that of the Latin letter whatever CapsLock made of it, and the one at the same place for
    /// letters that no shortcut is made of.
    fn shortcut(&self, character: char, held: Held, code: &str) -> Option<u8> {
        if held.mods & (mods::CONTROL | mods::ALT | mods::SUPER) == 0 {
            return None;
        }
        if character.is_ascii() {
            return self
                .keymap
                .letter(character.to_ascii_lowercase())
                .filter(|_| character.is_ascii_alphabetic());
        }
        // With AltGr or Option it is a character all the same.
        keysym::position(code).filter(|_| held.mods & self.keymap.level3_mod() == 0)
    }

    fn press(&mut self, display: &Display, way: Way) -> Result<(), InputError> {
        let mut lifted: Vec<u8> = Vec::new();
        for key in &self.held {
            if self.keymap.mods(key.keycode) & way.lift != 0 && !lifted.contains(&key.keycode) {
                lifted.push(key.keycode);
            }
        }
        let added = [mods::SHIFT, self.keymap.level3_mod()].into_iter().filter(|bit| way.press & bit != 0);
        let added: Vec<u8> = added.map(|bit| self.keymap.key_for(bit)).collect();
        lifted.iter().try_for_each(|keycode| display.key(*keycode, false))?;
        added.iter().try_for_each(|keycode| display.key(*keycode, true))?;
        display.key(way.keycode, true)?;
        added.iter().rev().try_for_each(|keycode| display.key(*keycode, false))?;
        lifted.iter().rev().try_for_each(|keycode| display.key(*keycode, true))?;
        self.spares.pressed(way.keycode);
        Ok(())
    }

    /// Lends spare keys to keysyms; those lent to `keep` stay. Afterwards the program with the focus knows. `false` if
    /// there are not enough spare keys or the program hangs.
    fn lend(&mut self, display: &mut Display, keysyms: &[u32], keep: &[u32]) -> Result<bool, InputError> {
        let held: Vec<u8> = self.held.iter().map(|key| key.keycode).collect();
        let keep = |keycode: u8, keysym: u32| held.contains(&keycode) || keep.contains(&keysym);
        let Some(loan) = self.spares.lend(keysyms, keep) else { return Ok(false) };
        if loan.unsettled && !self.settler.settle(display, EVENTS_READ)? {
            // What the keys are lent to is found out again.
            self.stale = true;
            return Ok(false);
        }
        self.known = false;
        let x = display.connection();
        for (first, keysyms) in loan.runs() {
            let count = u8::try_from(keysyms.len()).expect("there are fewer keycodes than 256");
            let both: Vec<u32> = keysyms.into_iter().flat_map(|keysym| [keysym; LEVELS as usize]).collect();
            x.change_keyboard_mapping(count, first, LEVELS, &both)?.check()?;
        }
        self.keymap = self.read(display)?;
        // The answer came after the news of the change.
        self.notice(display)?;
        self.stale = false;
        self.make_known(display)
    }

    /// Reads the map again if it changed. Others change it, too: a VNC viewer lends keys like this thread. `false` if
    /// the program with the focus cannot know the map.
    fn renew(&mut self, display: &mut Display) -> Result<bool, InputError> {
        self.notice(display)?;
        if self.stale {
            let now = self.read(display)?;
            self.notice(display)?;
            self.stale = false;
            self.spares.correct(|keycode| if now.is_empty(keycode) { Some(0) } else { now.lone(keycode) });
            if now != self.keymap {
                self.keymap = self.read(display)?;
                self.known = false;
            }
        }
        Ok(self.known || self.make_known(display)?)
    }

    fn make_known(&mut self, display: &mut Display) -> Result<bool, InputError> {
        self.known = self.settler.settle(display, MAP_KNOWN)?;
        if self.known {
            self.spares.settled();
        }
        Ok(self.known)
    }

    fn read(&self, display: &Display) -> Result<Keymap, InputError> {
        let parts = MapPart::KEY_TYPES | MapPart::KEY_SYMS | MapPart::MODIFIER_MAP;
        let reply = display
            .connection()
            .xkb_get_map(CORE, parts, 0_u16.into(), 0, 0, 0, 0, 0, 0, 0, 0, 0_u16.into(), 0, 0, 0, 0, 0, 0)?
            .reply()?;
        let lent: Vec<u8> =
            self.spares.all().filter(|(_, keysym)| *keysym != 0).map(|(key, _)| key).collect();
        Ok(Keymap::read(&reply, &lent))
    }

    /// Finds the spare keys, those that an earlier process lent among them.
    fn take_over(&mut self, display: &Display) -> Result<(), InputError> {
        let (x, root) = (display.connection(), display.root());
        let name = x.intern_atom(false, SPARE_KEYS)?.reply()?.atom;
        let earlier = x.get_property(false, root, name, AtomEnum::CARDINAL, 0, 64)?.reply()?.value;
        let mut spares: Vec<(u8, u32)> = Vec::new();
        for keycode in self.keymap.keycodes() {
            if self.keymap.is_empty(keycode) {
                spares.push((keycode, 0));
            } else if earlier.contains(&keycode)
                && let Some(keysym) = self.keymap.lone(keycode)
            {
                spares.push((keycode, keysym));
            }
        }
        let keycodes: Vec<u8> = spares.iter().map(|spare| spare.0).collect();
        x.change_property8(PropMode::REPLACE, root, name, AtomEnum::CARDINAL, &keycodes)?.check()?;
        self.spares = Spares::new(spares);
        Ok(())
    }
}
