//! Characters as they arrive in a page of a real browser.

use super::{
    super::keysym::keysym_of,
    Hand,
    browser::{Browser, Field},
    layouts::{Stroke, strokes},
    server::Server,
};

const SHIFT_L: u32 = 0xffe1;
const CONTROL_L: u32 = 0xffe3;
const LEVEL3: u32 = 0xfe03;
const OTHERS: &str = "あいうえおアイウエオ漢字変換日本語한국어Привет Ωλ ‰†∞≠😀🙈🇩🇪👩‍💻é̂ñ";

fn start(field: Field) -> Option<(Server, Hand, Browser)> {
    let server = Server::start()?;
    let browser = Browser::start(&server, field)?;
    let hand = Hand::on(&server.display);
    Some((server, hand, browser))
}

/// As a viewer sends it: modifiers are held as they are on the person's keyboard.
fn type_strokes(hand: &Hand, strokes: &[Stroke]) -> String {
    let held: [&[(u32, &str)]; 4] = [
        &[],
        &[(SHIFT_L, "ShiftLeft")],
        &[(LEVEL3, "AltRight")],
        &[(SHIFT_L, "ShiftLeft"), (LEVEL3, "AltRight")],
    ];
    for (level, modifiers) in held.iter().enumerate() {
        modifiers.iter().for_each(|(keysym, code)| hand.key(true, *keysym, code));
        for stroke in strokes.iter().filter(|stroke| stroke.level == level) {
            hand.tap(keysym_of(stroke.character), stroke.code);
        }
        modifiers.iter().for_each(|(keysym, code)| hand.key(false, *keysym, code));
    }
    strokes.iter().map(|stroke| stroke.character).collect()
}

#[test]
fn every_character_of_real_layouts_arrives_by_keys_and_by_text() {
    let Some((_server, hand, browser)) = start(Field::Area) else { return };
    for (layout, variant) in [("de", ""), ("fr", ""), ("us", "intl"), ("us", "")] {
        let Some(strokes) = strokes(layout, variant) else { return };
        assert!(strokes.len() >= 90, "{} characters of {layout}", strokes.len());
        let typed = type_strokes(&hand, &strokes);
        browser.expect(&typed);
        browser.clear();
        hand.text(&typed);
        browser.expect(&typed);
        browser.clear();
    }
    for character in OTHERS.chars() {
        hand.tap(keysym_of(character), "");
    }
    browser.expect(OTHERS);
    browser.clear();
    hand.text(OTHERS);
    browser.expect(OTHERS);
    assert_eq!(hand.injector.stats().1, 0);
}

#[test]
fn a_password_field_takes_every_character() {
    let Some((_server, hand, browser)) = start(Field::Password) else { return };
    let Some(strokes) = strokes("de", "") else { return };
    let typed = type_strokes(&hand, &strokes);
    browser.expect(&typed);
    browser.clear();
    hand.text(&format!("{typed}{OTHERS}"));
    browser.expect(&format!("{typed}{OTHERS}"));
    browser.clear();
    // The keypad's keys, whatever NumLock and Shift are.
    for (keysym, modifier) in [(0xffb7, SHIFT_L), (0xffae, LEVEL3), (0xffab, SHIFT_L), (0xffb0, LEVEL3)] {
        hand.tap(keysym, "");
        hand.key(true, modifier, "");
        hand.tap(keysym, "");
        hand.key(false, modifier, "");
    }
    browser.expect("77..++00");
    assert_eq!(hand.injector.stats().1, 0);
}

#[test]
fn long_mixed_texts_and_fast_keys_arrive_exactly() {
    let Some((_server, hand, browser)) = start(Field::Area) else { return };
    // Hundreds of different characters that no map has, far more than there are spare keys.
    let rare: Vec<char> = (0..250).map(|step| char::from_u32(0x4e00 + step * 7).unwrap()).collect();
    let mixed: String =
        rare.iter().zip("Pa$$w0rd! äöü\n".chars().cycle()).flat_map(|(a, b)| [*a, b]).collect();
    hand.text(&mixed);
    browser.expect(&mixed);
    browser.clear();
    for character in &rare {
        hand.tap(keysym_of(*character), "");
    }
    browser.expect(&rare.iter().collect::<String>());
    browser.clear();
    let fast: String = "aAbB!?zZ/7ßé".chars().cycle().take(1000).collect();
    for character in fast.chars() {
        hand.tap(keysym_of(character), "");
    }
    browser.expect(&fast);
    assert_eq!(hand.injector.stats().1, 0);
}

#[test]
fn shortcuts_mean_the_letter_of_the_person_s_layout() {
    let Some((_server, hand, browser)) = start(Field::Area) else { return };
    let control = |keysym, code: &str| {
        hand.key(true, CONTROL_L, "ControlLeft");
        hand.tap(keysym, code);
        hand.key(false, CONTROL_L, "ControlLeft");
    };
    hand.text("abc");
    browser.expect("abc");
    control(u32::from('a'), "KeyA");
    browser.wait("all is selected", |told| told.selected == 3);
    control(u32::from('c'), "KeyC");
    assert_eq!(hand.copied(), "abc");
    hand.tap(u32::from('x'), "KeyX");
    browser.expect("x");
    // The key next to T of a German keyboard, with CapsLock on.
    control(u32::from('Z'), "KeyY");
    let told = browser.wait("the typing is undone", |told| told.value == "abc");
    assert_eq!(told.keys.last().unwrap(), "C:z:new");
    // The same place as A under a Cyrillic layout.
    hand.tap(0xff53, "ArrowRight");
    browser.wait("nothing is selected", |told| told.selected == 0);
    control(0x0100_0444, "KeyA");
    browser.wait("all is selected", |told| told.selected == 3);
}

#[test]
fn a_held_key_repeats_and_modifiers_held_by_the_viewer_do_not_spoil_texts() {
    let Some((_server, hand, browser)) = start(Field::Area) else { return };
    for (keysym, code) in [(u32::from('x'), "KeyX"), (0xf6, "Semicolon"), (u32::from('?'), "Minus")] {
        (0..5).for_each(|_| hand.key(true, keysym, code));
        hand.key(false, keysym, code);
    }
    browser.expect("xxxxxööööö?????");
    browser.clear();
    for (keysym, code) in [(SHIFT_L, "ShiftLeft"), (CONTROL_L, "ControlLeft"), (LEVEL3, "AltRight")] {
        hand.key(true, keysym, code);
        hand.text("Käse/7\nw@b");
        hand.key(false, keysym, code);
    }
    browser.expect(&"Käse/7\nw@b".repeat(3));
    // Modifiers are held again afterwards.
    hand.key(true, SHIFT_L, "ShiftLeft");
    hand.text("a");
    hand.tap(0xff50, "Home");
    browser.wait("the line is selected", |told| told.selected == 4);
}

#[test]
fn a_long_clipboard_goes_into_the_page_and_out_again_and_a_wipe_empties_it() {
    let Some((server, hand, browser)) = start(Field::Area) else { return };
    let control = |letter: char| {
        hand.key(true, CONTROL_L, "ControlLeft");
        hand.tap(letter.into(), "");
        hand.key(false, CONTROL_L, "ControlLeft");
    };
    let long: String = "häß 漢字 😀\n".chars().cycle().take(110_000).collect();
    assert!(long.len() > 200_000);
    hand.injector.clipboard(long.clone());
    let viewer = server.connect();
    hand.wait("the clipboard is ours", || {
        hand.wake.wake();
        (viewer.owner(b"CLIPBOARD") != 0).then_some(())
    });
    control('v');
    browser.expect(&long);
    control('a');
    browser.wait("all is selected", |told| told.selected > 0);
    control('c');
    assert!(hand.copied() == long);
    hand.injector.wipe();
    browser.clear();
    control('v');
    hand.text("end");
    browser.expect("end");
}
