//! Hosts that are slow, broken, or not alone; and what they ask of the encoder.

use std::{io::Write, time::Duration};

use polydev_core::desktop::{ContentMode, FromDesktop, ToDesktop};

use crate::{
    host::Host,
    server::{Kind, Painter, Program, Server},
};

const GREEN: u32 = 0x20_c020;
const WHITE: u32 = 0xff_ffff;

/// Paints that many tiles of 32 pixels in colours that nobody can foresee.
fn tiles(painter: &Painter, round: u32, count: u32) {
    for tile in 0..count {
        let colour = (round * 7919 + tile).wrapping_mul(2_654_435_761) & WHITE;
        let (column, row) = (i16::try_from(tile % 20).unwrap(), i16::try_from(tile / 20).unwrap());
        painter.fill(colour, column * 32, row * 32, 31, 31);
    }
}

#[test]
fn a_host_that_does_not_read_costs_no_memory_and_sees_the_newest_picture_afterwards() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.rest();
    let noise = |round: u32| tiles(&painter, round, 300);
    (0..20).for_each(noise);
    let before = program.memory();
    (20..200).for_each(noise);
    let grown = program.memory().saturating_sub(before);
    assert!(grown < 8 << 20, "it grew by {grown} bytes");
    painter.fill(GREEN, 0, 0, 640, 480);
    let mut waited = 0;
    host.frame_where("that shows the newest picture", |_, picture| {
        waited += 1;
        picture.shows(GREEN, 320, 240) && picture.shows(GREEN, 10, 470)
    });
    assert!(waited < 40, "{waited} frames had piled up");
}

#[test]
fn the_rate_is_heeded() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    let mut round = 0;
    // Frames until ten of them together are as large as wanted.
    let mut frames_until = |host: &mut Host, kbps, wanted: &dyn Fn(usize) -> bool| {
        host.tell(&ToDesktop::Rate { kbps, fps: 60, mode: ContentMode::Camera });
        let mut sizes = Vec::new();
        while sizes.len() < 10 || !wanted(sizes[sizes.len() - 10..].iter().sum()) {
            assert!(sizes.len() < 400, "at {kbps} kbit/s: {:?} bytes", &sizes[390..]);
            round += 1;
            tiles(&painter, round, 60);
            sizes.push(host.frame().data.len());
        }
    };
    // Ten frames at 60 a second are a sixth of a second: 167 kB, and 17 kB.
    frames_until(&mut host, 8000, &|bytes| bytes > 60_000);
    frames_until(&mut host, 800, &|bytes| bytes < 30_000);
    frames_until(&mut host, 8000, &|bytes| bytes > 60_000);
}

#[test]
fn a_slow_link_gets_another_tuning_with_a_keyframe_once_the_picture_stands_still() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.rest();
    host.tell(&ToDesktop::Rate { kbps: 2000, fps: 30, mode: ContentMode::Auto });
    assert!(!host.frame().key, "between the two thresholds nothing changes");
    host.tell(&ToDesktop::Rate { kbps: 500, fps: 30, mode: ContentMode::Auto });
    for round in 0..20 {
        tiles(&painter, round, 60);
        assert!(!host.frame().key, "it would be the last thing that a path can take that just got slow");
    }
    host.frame_where("that is a keyframe", |frame, _| frame.key);
}

#[test]
fn while_a_host_holds_nothing_is_made_and_changes_become_one_frame() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.rest();
    host.tell(&ToDesktop::Hold(true));
    // The figures come once a second, in any case; what was made before has been read with the first.
    let next_figures = |host: &mut Host| {
        let mut frames = 0;
        while !matches!(host.next(), Some(FromDesktop::Stats(_))) {
            frames += 1;
        }
        frames
    };
    next_figures(&mut host);
    tiles(&painter, 1, 300);
    painter.fill(GREEN, 0, 0, 640, 480);
    assert_eq!(next_figures(&mut host) + next_figures(&mut host), 0);
    host.tell(&ToDesktop::Hold(false));
    let frame = host.frame();
    assert!(host.decoder.shows(GREEN, 320, 240) && host.decoder.shows(GREEN, 10, 470));
    assert!(!frame.key);
}

#[test]
fn nonsense_ends_only_the_connection_that_brought_it() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let mut program = Program::start(&server);
    for nonsense in [&[0, 0, 0, 1, 0x99][..], &[0xff; 64], &[0, 0, 0, 0], &[0, 0, 0, 2, 0x21, 7]] {
        let mut host = Host::watch(&program.socket);
        host.frame();
        host.socket.write_all(nonsense).unwrap();
        while host.next().is_some() {}
        assert_eq!(program.child.try_wait().unwrap(), None);
    }
    assert!(Host::watch(&program.socket).frame().key);
}

#[test]
fn the_newest_host_is_served() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let program = Program::start(&server);
    let mut first = Host::watch(&program.socket);
    first.frame();
    let mut second = Host::watch(&program.socket);
    while first.next().is_some() {}
    let frame = second.frame();
    assert!(frame.key && frame.seq == 0);
}

#[test]
fn nothing_is_sent_to_a_host_for_whom_nobody_watches() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let painter = server.connect();
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    host.frame();
    host.tell(&ToDesktop::Watch(false));
    painter.fill(GREEN, 0, 0, 640, 480);
    // A frame a second would come if anybody watched.
    host.until_silent(Duration::from_millis(1500));
    host.tell(&ToDesktop::Watch(true));
    host.frame_where("that shows the newest picture", |frame, picture| {
        frame.key && picture.shows(GREEN, 320, 240)
    });
}

#[test]
fn counters_and_the_pointer_are_told_while_somebody_watches() {
    let Some(server) = Server::start(Kind::Xvfb, 640, 480) else { return };
    let program = Program::start(&server);
    let mut host = Host::watch(&program.socket);
    let (mut shape, mut place, mut stats) = (None, None, None);
    while shape.is_none() || place.is_none() || stats.is_none() {
        match host.next().expect("the program goes on") {
            FromDesktop::CursorShape(seen) => shape = Some(seen),
            FromDesktop::CursorMoved { x, y } => place = Some((x, y)),
            FromDesktop::Stats(seen) => stats = Some(seen),
            _ => {}
        }
    }
    let stats = stats.unwrap();
    assert!(stats.frames > 0 && stats.keyframes == 1 && stats.encode_cpu_us > 0 && stats.cpu_us > 0);
    let place = place.unwrap();
    assert!((0..640).contains(&place.0) && (0..480).contains(&place.1));
}
