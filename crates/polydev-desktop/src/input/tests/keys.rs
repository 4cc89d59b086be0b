//! Keys, buttons and the wheel as a plain X client sees them.

use polydev_core::desktop::InputEvent;
use x11rb::protocol::{
    Event,
    xkb::{ConnectionExt as _, Group},
    xproto::ConnectionExt as _,
};

use super::{Hand, server::Server};

const SHIFT_L: u32 = 0xffe1;
const CONTROL_L: u32 = 0xffe3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Key(u8, bool),
    Button(u8, bool, i16, i16),
}

fn seen(event: &Event) -> Option<Seen> {
    Some(match event {
        Event::KeyPress(event) => Seen::Key(event.detail, true),
        Event::KeyRelease(event) => Seen::Key(event.detail, false),
        Event::ButtonPress(event) => Seen::Button(event.detail, true, event.root_x, event.root_y),
        Event::ButtonRelease(event) => Seen::Button(event.detail, false, event.root_x, event.root_y),
        _ => return None,
    })
}

/// Input is handed to the server a moment before it is done there.
fn until(hand: &Hand, what: &str, done: impl Fn() -> bool) {
    hand.wait(what, || {
        hand.wake.wake();
        done().then_some(())
    });
}

#[test]
fn no_key_of_thousands_is_lost_and_each_is_let_go_by_its_own_release() {
    let Some(server) = Server::start() else { return };
    let (hand, viewer) = (Hand::on(&server.display), server.connect());
    viewer.window();
    for round in 0..1000_u32 {
        hand.tap(0x61 + round % 26, "");
    }
    let keys = viewer.events(2000, seen);
    let pressed: Vec<Seen> = keys.iter().copied().step_by(2).collect();
    let released: Vec<Seen> = keys.iter().copied().skip(1).step_by(2).collect();
    for (press, release) in pressed.iter().zip(released) {
        let Seen::Key(keycode, true) = press else { panic!("{press:?}") };
        assert_eq!(release, Seen::Key(*keycode, false));
    }
    assert_eq!(pressed[..26], pressed[26..52]);
    hand.finish();
    assert_eq!(hand.injector.stats(), (2000, 0));
    assert!(viewer.keys_down().is_empty());
}

#[test]
fn a_release_lets_go_of_what_was_pressed_even_if_its_meaning_changed() {
    let Some(server) = Server::start() else { return };
    let (hand, viewer) = (Hand::on(&server.display), server.connect());
    viewer.window();
    hand.key(true, 0x61, "KeyA");
    hand.key(false, 0x41, "KeyA");
    hand.key(true, 0xe4, "Quote");
    hand.key(false, 0xc4, "Quote");
    hand.finish();
    let keys = viewer.events(4, seen);
    let Seen::Key(lent, true) = keys[2] else { panic!("{keys:?}") };
    assert_eq!(
        keys,
        [Seen::Key(38, true), Seen::Key(38, false), Seen::Key(lent, true), Seen::Key(lent, false)]
    );
}

#[test]
fn release_all_and_wipe_leave_nothing_held() {
    let Some(server) = Server::start() else { return };
    let (hand, viewer) = (Hand::on(&server.display), server.connect());
    viewer.window();
    let held = || viewer.x.query_pointer(viewer.root).unwrap().reply().unwrap().mask;
    for wipe in [false, true] {
        for (keysym, code) in [(SHIFT_L, "ShiftLeft"), (CONTROL_L, "ControlLeft"), (0x61, "KeyA"), (0xe4, "")]
        {
            hand.key(true, keysym, code);
        }
        hand.send(InputEvent::Button { button: 1, down: true, x: 5, y: 6 });
        hand.finish();
        until(&hand, "four keys and a button are down", || {
            viewer.keys_down().len() == 4 && u16::from(held()) & 0x100 != 0
        });
        if wipe {
            hand.injector.wipe();
            hand.send(InputEvent::Move { x: 1, y: 1 });
        } else {
            hand.send(InputEvent::ReleaseAll);
        }
        hand.finish();
        until(&hand, "nothing is held", || viewer.keys_down().is_empty() && u16::from(held()) == 0);
    }
}

#[test]
fn what_a_crashed_process_held_is_let_go() {
    let Some(server) = Server::start() else { return };
    let viewer = server.connect();
    viewer.window();
    let display = super::super::Display::open(Some(&server.display)).unwrap();
    display.key(38, true).unwrap();
    display.button(1, true).unwrap();
    display.sync().unwrap();
    assert_eq!(viewer.keys_down(), [38]);
    let hand = Hand::on(&server.display);
    hand.send(InputEvent::Move { x: 1, y: 1 });
    hand.finish();
    let held = || viewer.x.query_pointer(viewer.root).unwrap().reply().unwrap().mask;
    until(&hand, "nothing is held", || viewer.keys_down().is_empty() && u16::from(held()) == 0);
}

#[test]
fn spare_keys_are_used_again_by_the_next_process() {
    let Some(server) = Server::start() else { return };
    let viewer = server.connect();
    viewer.window();
    let lent = || viewer.map().iter().filter(|(_, keysym)| keysym >> 24 == 1).count();
    let mut most = 0;
    for process in 0..8_u32 {
        let hand = Hand::on(&server.display);
        for offset in 0..12 {
            hand.tap(0x0100_4e00 + process * 12 + offset, "");
        }
        hand.finish();
        assert_eq!(hand.injector.stats(), (24, 0), "process {process}");
        most = most.max(lent());
    }
    assert_eq!(lent(), most, "all spare keys are in use, and no other");
    assert!((12..=19).contains(&most), "{most}");
}

#[test]
fn locks_and_layouts_of_the_server_are_undone_without_pressing_their_keys() {
    let Some(server) = Server::start() else { return };
    let (hand, viewer) = (Hand::on(&server.display), server.connect());
    viewer.window();
    viewer.x.xkb_use_extension(1, 0).unwrap().reply().unwrap();
    let lock = 2_u16.into();
    viewer
        .x
        .xkb_latch_lock_state(0x100, lock, lock, true, Group::M2, 0_u16.into(), false, 0)
        .unwrap()
        .check()
        .unwrap();
    for keysym in [0xffe5, 0xff7f, 0xfe08, 0xfe51] {
        hand.tap(keysym, "");
    }
    hand.tap(0x61, "KeyA");
    hand.finish();
    assert_eq!(viewer.events(2, seen), [Seen::Key(38, true), Seen::Key(38, false)]);
    let state = viewer.x.xkb_get_state(0x100).unwrap().reply().unwrap();
    assert_eq!((u16::from(state.locked_mods), u8::from(state.group)), (0, 0));
}

#[test]
fn buttons_move_first_and_the_wheel_clicks_for_whole_notches() {
    let Some(server) = Server::start() else { return };
    let (hand, viewer) = (Hand::on(&server.display), server.connect());
    viewer.window();
    for (x, y) in [(1, 1), (700, 500), (10, 20)] {
        hand.send(InputEvent::Move { x, y });
    }
    hand.send(InputEvent::Button { button: 3, down: true, x: 30, y: 40 });
    hand.send(InputEvent::Button { button: 3, down: true, x: 31, y: 40 });
    hand.send(InputEvent::Button { button: 3, down: false, x: 32, y: 40 });
    for dy in [60, 60, 120] {
        hand.send(InputEvent::Wheel { dx: 0, dy, x: 50, y: 60 });
    }
    hand.send(InputEvent::Wheel { dx: -120, dy: 0, x: 50, y: 60 });
    hand.finish();
    let click = |button, x, y| [Seen::Button(button, true, x, y), Seen::Button(button, false, x, y)];
    let wheel = [click(5, 50, 60), click(5, 50, 60), click(6, 50, 60)];
    let right = [Seen::Button(3, true, 30, 40), Seen::Button(3, false, 32, 40)];
    assert_eq!(viewer.events(8, seen), [&right, wheel.as_flattened()].concat());
}

#[test]
fn a_display_that_goes_away_is_told() {
    let Some(server) = Server::start() else { return };
    let hand = Hand::on(&server.display);
    assert!(hand.injector.check().is_ok());
    drop(server);
    hand.wait("the loss of the display", || hand.injector.check().err());
}
