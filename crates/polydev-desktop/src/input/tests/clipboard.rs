//! The clipboard between two programs of our own, each of which is a stranger to the other.

use x11rb::protocol::xproto::{AtomEnum, ConnectionExt as _};

use super::{Hand, server::Server};

/// Far over one piece.
fn long() -> String {
    (0..)
        .map(|number: u32| format!("{number} häß 漢字 😀\n"))
        .scan(0, |len, line| {
            *len += line.len();
            (*len <= 200_000).then_some(line)
        })
        .collect()
}

#[test]
fn a_text_goes_in_and_comes_out_whole() {
    let Some(server) = Server::start() else { return };
    let (giver, taker) = (Hand::on(&server.display), Hand::on(&server.display));
    for text in ["short", "häß 漢字 😀", &long(), "short"] {
        giver.injector.clipboard(text.to_owned());
        assert!(taker.copied() == text, "a text of {} bytes", text.len());
        // And back; what it owns itself is no news.
        taker.injector.clipboard(format!("{text}!"));
        assert!(giver.copied() == format!("{text}!"));
        assert_eq!(giver.outbox.take().or(taker.outbox.take()), None);
    }
}

#[test]
fn a_wipe_leaves_no_selection_with_an_owner() {
    let Some(server) = Server::start() else { return };
    let (hand, other, viewer) = (Hand::on(&server.display), Hand::on(&server.display), server.connect());
    let window = viewer.window();
    let primary: u32 = AtomEnum::PRIMARY.into();
    viewer.x.set_selection_owner(window, primary, 0_u32).unwrap().check().unwrap();
    other.injector.clipboard("FAKE".to_owned());
    assert_eq!(hand.copied(), "FAKE");
    hand.injector.wipe();
    hand.wait("no owners", || {
        hand.wake.wake();
        (viewer.owner(b"CLIPBOARD") == 0 && viewer.owner(b"PRIMARY") == 0).then_some(())
    });
}
