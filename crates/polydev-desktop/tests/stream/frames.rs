//! What makes frames, and what they show.

use polydev_core::desktop::ToDesktop;

use crate::{
    host::Host,
    server::{Kind, Program, Server},
};

const RED: u32 = 0xd0_2020;
const BLUE: u32 = 0x20_20d0;

#[test]
fn damage_becomes_a_frame_that_shows_what_was_drawn() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    let first = host.frame();
    assert!(
        first.key && first.data.starts_with(&[0, 0, 0, 1, 0x67]),
        "a keyframe begins with its parameters"
    );
    painter.fill(RED, 0, 0, 640, 480);
    host.frame_where("that shows the red screen", |_, picture| picture.shows(RED, 320, 240));
    host.rest();
    painter.fill(BLUE, 100, 200, 64, 64);
    let frame = host.frame_where("that shows the blue field", |_, picture| picture.shows(BLUE, 132, 232));
    assert!(!frame.key && !frame.keep_alive);
    assert!(host.decoder.shows(RED, 320, 100));
}

#[test]
fn a_still_screen_becomes_sharper_and_then_only_keeps_alive() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.rest();
    for _ in 0..2 {
        let frame = host.frame();
        assert!(frame.keep_alive && !frame.key, "{frame:?}");
        assert!(frame.data.len() < 1000, "{} bytes to say nothing", frame.data.len());
    }
}

#[test]
fn a_keyframe_comes_when_it_is_asked_for_and_not_by_itself() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    assert!(host.frame().key);
    for round in 0..20 {
        painter.fill(if round % 2 == 0 { RED } else { BLUE }, 0, 0, 640, 480);
        assert!(!host.frame().key);
    }
    host.tell(&ToDesktop::Keyframe);
    host.frame_where("that is a keyframe", |frame, _| frame.key);
}
