//! Screens that change their size or go away.

use polydev_core::desktop::{DESKTOP_VERSION, FromDesktop, InputEvent, ToDesktop};
use x11rb::protocol::xproto::ConnectionExt;

use crate::{
    host::Host,
    server::{Kind, Program, Server},
};

const RED: u32 = 0xd0_2020;

#[test]
fn the_screen_takes_any_size_and_goes_on_with_a_keyframe() {
    let Some(server) = Server::start(Kind::Xtigervnc, 1024, 768) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.frame();
    for (width, height) in [(801, 601), (390, 844), (1280, 720), (1920, 1080), (1024, 768), (390, 844)] {
        host.tell(&ToDesktop::Resize { width, height, scale: 100 });
        let even = (width & !1, height & !1);
        let frame = host.frame_where("of the new size", |frame, _| (frame.width, frame.height) == even);
        assert!(frame.key);
        let root = painter.x.get_geometry(painter.root).unwrap().reply().unwrap();
        assert_eq!((root.width, root.height), even);
        painter.fill(RED, 0, 0, width, height);
        let (x, y) = (usize::from(even.0) - 4, usize::from(even.1) - 4);
        host.frame_where("that shows the far corner", |_, picture| picture.shows(RED, x, y));
    }
    let mut next = Host::connect(&program.socket);
    assert_eq!(next.next(), Some(FromDesktop::Hello { version: DESKTOP_VERSION, width: 390, height: 844 }));
}

#[test]
fn a_server_that_cannot_grow_goes_on_as_it_was() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.tell(&ToDesktop::Resize { width: 1600, height: 1200, scale: 100 });
    painter.fill(RED, 0, 0, 640, 480);
    host.frame_where("that shows the field", |_, picture| picture.shows(RED, 600, 400));
    host.rest();
    let root = painter.x.get_geometry(painter.root).unwrap().reply().unwrap();
    assert_eq!((root.width, root.height), (640, 480));
}

#[test]
fn a_frame_names_the_newest_input_it_may_show() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    assert_eq!(host.frame().input_seq, 0);
    host.tell(&ToDesktop::Input { seq: 7, event: InputEvent::Move { x: 123, y: 321 } });
    while host.next().expect("the program goes on") != (FromDesktop::CursorMoved { x: 123, y: 321 }) {}
    let painter = server.connect();
    painter.fill(RED, 0, 0, 640, 480);
    let seq = loop {
        if let Some(FromDesktop::Frame(frame)) = host.next()
            && !frame.keep_alive
        {
            break frame.input_seq;
        }
    };
    assert_eq!(seq, 7);
}

#[test]
fn the_program_ends_with_a_failure_when_the_display_goes_away() {
    let Some(mut server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let mut watched = Program::start(&server);
    let mut unwatched = Program::start(&server);
    let mut host = Host::watch(&watched.socket);
    host.frame();
    Host::connect(&unwatched.socket).next();
    server.end();
    for program in [&mut watched, &mut unwatched] {
        assert!(!program.ended().success());
    }
}

#[test]
fn a_program_that_is_started_again_takes_over_the_socket_of_the_one_before() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let mut program = Program::start(&server);
    Host::watch(&program.socket).frame();
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    assert!(program.socket.exists());
    program.restart(&server);
    let mut host = Host::watch(&program.socket);
    assert!(host.frame().key);
}
