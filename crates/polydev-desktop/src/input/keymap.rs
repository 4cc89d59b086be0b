//! The server's keyboard map: which key makes what, and which modifiers must be held for it.
//!
//! Keys have types; a type says which level of the key a set of modifiers selects (X Keyboard Extension protocol,
//! section 7.1). Only the first group (layout) is used: the input thread keeps the server on it.

use std::{collections::HashMap, ops::RangeInclusive};

use x11rb::protocol::xkb::{GetMapReply, KeyType};
use xkeysym::key;

use super::keysym;

/// Bits of modifiers as the core protocol has them.
pub(super) mod mods {
    pub(in super::super) const SHIFT: u8 = 1;
    pub(in super::super) const LOCK: u8 = 1 << 1;
    pub(in super::super) const CONTROL: u8 = 1 << 2;
    /// Alt and Super. The server's map may have them elsewhere, but no map of XKB's rules does.
    pub(in super::super) const ALT: u8 = 1 << 3;
    pub(in super::super) const SUPER: u8 = 1 << 6;

    /// Those of a mask of the protocol; the rest of it has no meaning in a map.
    pub(in super::super) fn bits(mask: x11rb::protocol::xproto::ModMask) -> u8 {
        u16::from(mask).to_le_bytes()[0]
    }
}

/// Keys of the block that has letters, digits and signs; others that make a character (a hidden parenthesis key) are
/// not what programs expect.
const TYPING: RangeInclusive<u8> = 9..=94;
/// Two more of these, on Japanese and Brazilian keyboards.
const TYPING_TOO: [u8; 2] = [97, 132];

/// One key of the map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Key {
    kind: usize,
    /// By level.
    keysyms: Vec<u32>,
    mods: u8,
}

/// The part of a key type that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    /// Modifiers that matter.
    mask: u8,
    /// Level of each set of them; all others select level 0.
    levels: Vec<(u8, u8)>,
}

/// A way to make a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) keycode: u8,
    /// Modifiers that must be pressed before, and let go after it.
    pub(super) press: u8,
    /// Modifiers that must be let go before, and pressed again after it.
    pub(super) lift: u8,
}

/// Modifiers while a way is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    /// By keys or locks.
    pub(super) mods: u8,
    /// Locked ones: they cannot be lifted.
    pub(super) locked: u8,
}

/// The map of a server. The default has no keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Keymap {
    first: u8,
    keys: Vec<Key>,
    kinds: Vec<Kind>,
    /// Where each keysym is: keycode and level.
    places: HashMap<u32, Vec<(u8, u8)>>,
    characters: HashMap<char, Vec<(u8, u8)>>,
    shift: u8,
    level3: u8,
    level3_mod: u8,
}

impl Keymap {
    /// Reads the server's answer. `lent` are keycodes that make characters although no typing key of a keyboard.
    pub(super) fn read(reply: &GetMapReply, lent: &[u8]) -> Self {
        let kinds = reply.map.types_rtrn.iter().flatten().map(Kind::read).collect();
        let first = reply.first_key_sym;
        let mut keys: Vec<Key> = reply
            .map
            .syms_rtrn
            .iter()
            .flatten()
            .map(|key| {
                let groups = key.group_info & 0xf;
                let width = if groups == 0 { 0 } else { usize::from(key.width) };
                let keysyms = key.syms.iter().copied().take(width).collect();
                Key { kind: usize::from(key.kt_index[0]), keysyms, mods: 0 }
            })
            .collect();
        for entry in reply.map.modmap_rtrn.iter().flatten() {
            if let Some(key) =
                entry.keycode.checked_sub(first).and_then(|place| keys.get_mut(usize::from(place)))
            {
                key.mods = mods::bits(entry.mods);
            }
        }
        Self::new(first, keys, kinds, lent)
    }

    fn new(first: u8, keys: Vec<Key>, kinds: Vec<Kind>, lent: &[u8]) -> Self {
        let mut map = Self { first, keys, kinds, ..Self::default() };
        for (keycode, key) in (first..=u8::MAX).zip(&map.keys) {
            let types = TYPING.contains(&keycode) || TYPING_TOO.contains(&keycode) || lent.contains(&keycode);
            for (level, keysym) in (0..).zip(&key.keysyms) {
                map.places.entry(*keysym).or_default().push((keycode, level));
                if types && let Some(character) = keysym::char_of(*keysym) {
                    map.characters.entry(character).or_default().push((keycode, level));
                }
            }
        }
        map.shift = map.modifier(key::Shift_L).unwrap_or(0);
        map.level3 = map.modifier(key::ISO_Level3_Shift).unwrap_or(0);
        map.level3_mod = map.mods(map.level3);
        map
    }

    fn key(&self, keycode: u8) -> Option<&Key> {
        self.keys.get(usize::from(keycode.checked_sub(self.first)?))
    }

    /// Keycodes the server knows.
    pub(super) fn keycodes(&self) -> impl Iterator<Item = u8> {
        (self.first..=u8::MAX).take(self.keys.len())
    }

    /// Modifiers that a key stands for.
    pub(super) fn mods(&self, keycode: u8) -> u8 {
        self.key(keycode).map_or(0, |key| key.mods)
    }

    /// The modifier that `ISO_Level3_Shift` stands for, or 0.
    pub(super) fn level3_mod(&self) -> u8 {
        self.level3_mod
    }

    /// The key to press for modifiers in [`Way::press`].
    pub(super) fn key_for(&self, modifier: u8) -> u8 {
        if modifier == mods::SHIFT { self.shift } else { self.level3 }
    }

    /// The key of a modifier's keysym.
    pub(super) fn modifier(&self, keysym: u32) -> Option<u8> {
        let places = self.places.get(&keysym)?;
        places.iter().find(|(keycode, level)| *level == 0 && self.mods(*keycode) != 0).map(|place| place.0)
    }

    /// Whether nothing is on a key.
    pub(super) fn is_empty(&self, keycode: u8) -> bool {
        self.key(keycode).is_some_and(|key| key.mods == 0 && key.keysyms.iter().all(|keysym| *keysym == 0))
    }

    /// The keysym of a key that has one and the same at all of several levels, as spare keys do.
    pub(super) fn lone(&self, keycode: u8) -> Option<u32> {
        let key = self.key(keycode).filter(|key| key.mods == 0)?;
        let (first, rest) = key.keysyms.split_first()?;
        (*first != 0 && !rest.is_empty() && rest.iter().all(|keysym| keysym == first)).then_some(*first)
    }

    /// The cheapest way to make a character; of equally cheap ones the key that was really pressed.
    pub(super) fn character(&self, character: char, held: Held, pressed: Option<u8>) -> Option<Way> {
        self.cheapest(self.characters.get(&character)?, held, pressed)
    }

    /// The way to press a key that makes no character. On the first level of a key no modifier is touched: they are
    /// meant to go with it.
    pub(super) fn named(&self, keysym: u32, held: Held) -> Option<Way> {
        let places = self.places.get(&keysym)?;
        match places.iter().find(|(keycode, level)| *level == 0 && self.mods(*keycode) == 0) {
            Some((keycode, _)) => Some(Way { keycode: *keycode, press: 0, lift: 0 }),
            None => self.cheapest(places, held, None),
        }
    }

    /// The key that has this letter on its first level, for shortcuts.
    pub(super) fn letter(&self, letter: char) -> Option<u8> {
        self.characters.get(&letter)?.iter().find(|(_, level)| *level == 0).map(|place| place.0)
    }

    fn cheapest(&self, places: &[(u8, u8)], held: Held, pressed: Option<u8>) -> Option<Way> {
        let ways = places.iter().flat_map(|(keycode, level)| self.ways(*keycode, *level, held));
        ways.min_by_key(|way| {
            let changes = way.press.count_ones() + way.lift.count_ones();
            (Some(way.keycode) != pressed && pressed.is_some(), changes, way.keycode)
        })
    }

    fn ways(&self, keycode: u8, level: u8, held: Held) -> impl Iterator<Item = Way> {
        let kind = self.key(keycode).and_then(|key| self.kinds.get(key.kind));
        let kind = kind.cloned().unwrap_or(Kind { mask: 0, levels: Vec::new() });
        let bare = (level == 0).then_some(0);
        let sets: Vec<u8> = kind
            .levels
            .iter()
            .filter(|(_, other)| *other == level)
            .map(|(set, _)| *set)
            .chain(bare)
            .filter(|set| kind.level(*set) == level)
            .collect();
        let level3 = self.level3_mod;
        // AltGr is held for the sake of the character, so it is not left on where it has no part in it.
        let mask = kind.mask | level3;
        let adjustable = level3 | if self.shift == 0 { 0 } else { mods::SHIFT };
        sets.into_iter().filter_map(move |set| {
            let (press, lift) = (set & !held.mods, held.mods & mask & !set);
            let possible = press & !adjustable == 0 && lift & !adjustable == 0 && lift & held.locked == 0;
            possible.then_some(Way { keycode, press, lift })
        })
    }
}

impl Kind {
    fn read(kind: &KeyType) -> Self {
        let active = kind.map.iter().filter(|entry| entry.active);
        let levels = active.map(|entry| (mods::bits(entry.mods_mask), entry.level)).collect();
        Self { mask: mods::bits(kind.mods_mask), levels }
    }

    fn level(&self, mods: u8) -> u8 {
        let set = mods & self.mask;
        self.levels.iter().find(|(other, _)| *other == set).map_or(0, |(_, level)| *level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL3: u8 = 1 << 7;

    fn keymap() -> Keymap {
        let kinds = vec![
            Kind { mask: 0, levels: vec![] },
            Kind { mask: mods::SHIFT, levels: vec![(mods::SHIFT, 1)] },
            Kind { mask: mods::SHIFT | mods::LOCK, levels: vec![(mods::SHIFT, 1), (mods::LOCK, 1)] },
            Kind {
                mask: mods::SHIFT | LEVEL3,
                levels: vec![(mods::SHIFT, 1), (LEVEL3, 2), (mods::SHIFT | LEVEL3, 3)],
            },
        ];
        let mut keys = vec![Key::default(); 90];
        let mut set = |keycode: usize, kind, keysyms: &[u32], mods| {
            keys[keycode - 8] = Key { kind, keysyms: keysyms.to_vec(), mods };
        };
        set(10, 1, &[0x31, 0x21], 0);
        set(16, 1, &[0x37, 0x2f], 0);
        set(38, 2, &[0x61, 0x41], 0);
        set(50, 0, &[0xffe1], mods::SHIFT);
        set(92, 0, &[0xfe03], LEVEL3);
        set(94, 3, &[0x3c, 0x3e, 0x7c, 0xa6], 0);
        set(93, 1, &[0xe4, 0xe4], 0);
        set(96, 1, &[0x0100_3042, 0x0100_3042], 0);
        Keymap::new(8, keys, kinds, &[96])
    }

    fn way(keycode: u8, press: u8, lift: u8) -> Option<Way> {
        Some(Way { keycode, press, lift })
    }

    #[test]
    fn the_modifiers_of_a_character_are_pressed_or_lifted() {
        let map = keymap();
        let held = |mods| Held { mods, locked: 0 };
        for (character, mods, expected) in [
            ('a', 0, way(38, 0, 0)),
            ('a', mods::SHIFT, way(38, 0, mods::SHIFT)),
            ('A', 0, way(38, mods::SHIFT, 0)),
            ('A', mods::SHIFT, way(38, 0, 0)),
            ('/', mods::SHIFT | LEVEL3, way(16, 0, LEVEL3)),
            ('7', LEVEL3, way(16, 0, LEVEL3)),
            ('|', 0, way(94, LEVEL3, 0)),
            ('|', mods::SHIFT, way(94, LEVEL3, mods::SHIFT)),
            ('¦', mods::SHIFT, way(94, LEVEL3, 0)),
            ('ä', mods::SHIFT, way(93, 0, 0)),
            ('あ', mods::SHIFT, way(96, 0, 0)),
            ('ö', 0, None),
        ] {
            assert_eq!(map.character(character, held(mods), None), expected, "{character} with {mods:#x}");
        }
    }

    #[test]
    fn a_lock_that_changes_the_character_makes_it_impossible() {
        let held = Held { mods: mods::LOCK, locked: mods::LOCK };
        assert_eq!(keymap().character('a', held, None), None);
        assert_eq!(keymap().character('1', held, None), way(10, 0, 0));
    }

    #[test]
    fn spare_keys_are_told_from_others() {
        let map = keymap();
        assert_eq!(map.lone(96), Some(0x0100_3042));
        assert_eq!((map.lone(38), map.lone(50), map.lone(91)), (None, None, None));
        assert!(map.is_empty(91) && !map.is_empty(96) && !map.is_empty(7) && !map.is_empty(200));
        assert_eq!(map.named(0xffff, Held { mods: 0, locked: 0 }), None);
    }
}
