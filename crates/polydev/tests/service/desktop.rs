//! Live desktops: who sees and does what, and what happens when the guest or a viewer fails.

use std::{sync::Arc, time::Duration};

use polydev::desktop::{JoinError, Joined, Lane, Outgoing, talk::Role};
use polydev_core::{
    desktop::{ContentMode, Frame, FromDesktop, InputEvent, ToDesktop},
    ids::{SessionId, VmId},
};
use polydev_host::driver::fake::FakeAgent;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::app::{TestApp, until};

const DEADLINE: Duration = Duration::from_secs(20);

/// A sign-in at the person's turn, and its VM.
pub(crate) struct Scene {
    pub(crate) app: TestApp,
    pub(crate) id: SessionId,
    pub(crate) vm: VmId,
    pub(crate) agent: Arc<FakeAgent>,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::of(TestApp::start().await).await
    }

    pub(crate) async fn of(app: TestApp) -> Self {
        let id = app.begin("alice").await;
        let (vm, _) = app.to_the_person(id).await;
        let agent = app.driver.agent(vm).unwrap();
        Self { app, id, vm, agent }
    }

    pub(crate) async fn join(&self, wish: Role) -> Guest {
        self.join_by(wish, Lane::WebSocket).await
    }

    async fn join_by(&self, wish: Role, lane: Lane) -> Guest {
        let joined = self.app.app.desktops.join(self.id, wish, lane).await.unwrap();
        joined.link.arrived();
        Guest(joined)
    }

    async fn rejoin(&self, token: &str) -> Guest {
        Guest(self.app.app.desktops.rejoin(self.id, token, Lane::WebSocket).await.unwrap())
    }

    /// Waits until the guest was told something.
    pub(crate) async fn told(&self, what: &str, wanted: impl Fn(&ToDesktop) -> bool) {
        until(what, async || self.agent.desktop().heard().iter().any(&wanted).then_some(())).await;
    }

    /// Waits until the newest thing of its kind that the guest was told is this.
    pub(crate) async fn last_told(&self, what: &str, kind: impl Fn(&ToDesktop) -> bool, wanted: ToDesktop) {
        until(what, async || {
            let heard = self.agent.desktop().heard();
            (heard.iter().rev().find(|message| kind(message)) == Some(&wanted)).then_some(())
        })
        .await;
    }

    fn inputs(&self) -> Vec<InputEvent> {
        let heard = self.agent.desktop().heard().into_iter();
        heard
            .filter_map(|message| match message {
                ToDesktop::Input { event, .. } => Some(event),
                _ => None,
            })
            .collect()
    }

    async fn injected(&self, wanted: &InputEvent) {
        let what = format!("the guest did {wanted:?}");
        until(&what, async || self.inputs().contains(wanted).then_some(())).await;
    }
}

/// A viewer without a transport.
pub(crate) struct Guest(Joined);

impl Guest {
    /// The next word of this type.
    pub(crate) async fn word(&mut self, kind: &str) -> Value {
        let waiting = async {
            loop {
                if let Outgoing::Text(text) = self.0.words.next().await.expect("words end") {
                    let word: Value = serde_json::from_str(&text).unwrap();
                    if word["type"] == kind {
                        return word;
                    }
                }
            }
        };
        timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("no {kind} came"))
    }

    /// Everything that is said until nothing more comes.
    async fn last_words(&mut self) -> Vec<Value> {
        let mut words = Vec::new();
        while let Some(word) = timeout(DEADLINE, self.0.words.next()).await.expect("words end") {
            if let Outgoing::Text(text) = word {
                words.push(serde_json::from_str(&text).unwrap());
            }
        }
        words
    }

    pub(crate) async fn frame(&mut self) -> Arc<Frame> {
        let frame = timeout(DEADLINE, self.0.frames.next()).await.expect("a picture comes");
        frame.expect("pictures have not ended")
    }

    pub(crate) async fn keyframe(&mut self) -> Arc<Frame> {
        loop {
            let frame = self.frame().await;
            if frame.key {
                return frame;
            }
        }
    }

    fn does(&self, event: &InputEvent) {
        self.0.link.input(&event.encode());
    }

    fn says(&self, words: Value) {
        self.0.link.words(&words.to_string());
    }

    async fn refused(&mut self) -> String {
        self.word("refused").await["code"].as_str().unwrap().to_owned()
    }
}

fn click(x: u16) -> InputEvent {
    InputEvent::Button { button: 1, down: true, x, y: 1 }
}

#[tokio::test]
async fn the_first_viewer_controls_and_starts_with_a_keyframe() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    let hello = viewer.word("hello").await;
    let (width, height) = (&hello["width"], &hello["height"]);
    assert_eq!(
        hello,
        json!({
            "type": "hello", "viewer": 1, "role": "control", "mayControl": true, "viewers": 1,
            "width": width, "height": height, "clipboard": "both"
        })
    );
    assert!(viewer.frame().await.key);
    viewer.does(&click(7));
    scene.injected(&click(7)).await;
    scene
        .app
        .session_until(scene.id, "the person is active", |s| s["steps"].to_string().contains("user_active"))
        .await;
}

#[tokio::test]
async fn only_the_viewer_in_control_acts_and_the_control_goes_from_one_to_the_other() {
    let scene = Scene::new().await;
    let mut first = scene.join(Role::Control).await;
    let mut second = scene.join(Role::Control).await;
    let mut looker = scene.join(Role::View).await;
    assert_eq!(second.word("hello").await["role"], "view");
    assert_eq!(looker.word("hello").await["mayControl"], false);
    second.does(&click(1));
    assert_eq!(second.refused().await, "view_only");
    second.says(json!({ "type": "clipboard", "text": "FAKE" }));
    looker.says(json!({ "type": "requestControl" }));
    assert_eq!(looker.refused().await, "view_only");
    second.says(json!({ "type": "requestControl" }));
    assert_eq!(first.word("controlRequested").await["viewer"], 2);
    first.keyframe().await;
    first.does(&click(2));
    scene.injected(&click(2)).await;
    first.says(json!({ "type": "releaseControl", "to": 3 }));
    assert_eq!(first.refused().await, "bad_message", "a viewer that may only look gets no control");
    first.says(json!({ "type": "releaseControl", "to": 2 }));
    assert_eq!(first.word("role").await["role"], "view");
    assert_eq!(second.word("role").await["role"], "control");
    scene.injected(&InputEvent::ReleaseAll).await;
    second.does(&click(3));
    scene.injected(&click(3)).await;
    first.does(&click(4));
    assert_eq!(first.refused().await, "view_only");
    assert!(!scene.inputs().contains(&click(1)) && !scene.inputs().contains(&click(4)));
}

#[tokio::test]
async fn what_is_held_is_let_go_when_the_connection_is_lost_and_the_control_waits() {
    let scene = Scene::new().await;
    let mut first = scene.join(Role::Control).await;
    let mut second = scene.join(Role::Control).await;
    first.keyframe().await;
    let key = InputEvent::Key { down: true, keysym: 0xffe1, code: "ShiftLeft".to_owned() };
    first.does(&key);
    scene.injected(&key).await;
    let token = first.0.link.reconnect_token();
    drop(first);
    until("the key is let go", async || {
        (scene.inputs().last() == Some(&InputEvent::ReleaseAll)).then_some(())
    })
    .await;
    assert_eq!(second.word("hello").await["role"], "view");
    let mut again = scene.rejoin(&token).await;
    let hello = again.word("hello").await;
    assert_eq!((&hello["viewer"], &hello["role"]), (&json!(1), &json!("control")));
    assert_eq!(again.0.link.reconnect_token(), token);
    again.does(&click(9));
    scene.injected(&click(9)).await;
    let stranger =
        scene.app.app.desktops.rejoin(scene.id, "0123456789abcdef0123456789abcdef", Lane::WebRtc).await;
    assert!(matches!(stranger, Err(JoinError::UnknownViewer)));
}

#[tokio::test]
async fn a_silent_viewer_in_control_gives_way_to_one_that_asks() {
    let scene = Scene::new().await;
    let mut silent = scene.join(Role::Control).await;
    let mut asking = scene.join(Role::Control).await;
    silent.word("hello").await;
    asking.says(json!({ "type": "requestControl" }));
    assert_eq!(silent.word("controlRequested").await["viewer"], 2);
    assert_eq!(asking.word("role").await["role"], "control", "without an answer");
    assert_eq!(silent.word("role").await["role"], "view");
    // It was there all the same, and asks in its turn: the other one is alive.
    asking.0.link.sign_of_life();
    silent.says(json!({ "type": "requestControl" }));
    assert_eq!(asking.word("controlRequested").await["viewer"], 1);
    asking.does(&click(6));
    scene.injected(&click(6)).await;
}

#[tokio::test]
async fn a_viewer_that_never_connects_neither_has_nor_waits_for_the_control() {
    let scene = Scene::new().await;
    let desktops = &scene.app.app.desktops;
    let never = desktops.join(scene.id, Role::Control, Lane::WebRtc).await.unwrap();
    let mut second = scene.join(Role::Control).await;
    let hello = second.word("hello").await;
    assert_eq!((&hello["role"], &hello["viewers"]), (&json!("control"), &json!(1)));
    let mut late = scene.join_by(Role::Control, Lane::WebRtc).await;
    assert_eq!(late.word("hello").await["role"], "view");
    second.says(json!({ "type": "releaseControl" }));
    assert_eq!(late.word("role").await["role"], "control", "nobody waits before it");
    drop(never);
}

#[tokio::test]
async fn a_page_that_comes_again_before_its_loss_was_noticed_takes_its_place() {
    let scene = Scene::new().await;
    let mut old = scene.join(Role::Control).await;
    let mut new = scene.rejoin(&old.0.link.reconnect_token()).await;
    let hello = new.word("hello").await;
    assert_eq!(
        (&hello["viewer"], &hello["role"], &hello["viewers"]),
        (&json!(1), &json!("control"), &json!(1))
    );
    old.last_words().await;
    drop(old);
    new.keyframe().await;
    new.does(&click(5));
    scene.injected(&click(5)).await;
}

#[tokio::test]
async fn keyframes_wished_for_by_many_are_asked_for_once_in_a_while() {
    let scene = Scene::new().await;
    let mut viewers =
        [scene.join(Role::Control).await, scene.join(Role::View).await, scene.join(Role::View).await];
    for viewer in &mut viewers {
        viewer.keyframe().await;
    }
    let asked = || scene.agent.desktop().heard().iter().filter(|told| **told == ToDesktop::Keyframe).count();
    let before = asked();
    for _ in 0..100 {
        viewers.iter().for_each(|viewer| viewer.0.link.keyframe_wanted());
    }
    for viewer in &mut viewers {
        viewer.keyframe().await;
    }
    assert!(asked() <= before + 2, "{} more", asked() - before);
}

#[tokio::test]
async fn the_guests_program_may_start_anew() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    scene.agent.desktop().quit();
    assert_eq!(viewer.word("interrupted").await["interrupted"], true);
    assert_eq!(viewer.word("interrupted").await["interrupted"], false);
    assert!(viewer.keyframe().await.seq <= 2, "of the new program");
    viewer.does(&click(8));
    scene.injected(&click(8)).await;
}

#[tokio::test]
async fn a_guest_that_does_not_keep_to_the_protocol_is_hung_up_on_and_called_again() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    for _ in 0..3 {
        scene.agent.desktop().garble();
        assert_eq!(viewer.word("interrupted").await["interrupted"], true);
        assert_eq!(viewer.word("interrupted").await["interrupted"], false);
    }
    viewer.keyframe().await;
}

#[tokio::test]
async fn a_lost_connection_to_the_vm_is_an_interruption_only() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    scene.app.driver.drop_connection(scene.vm);
    assert_eq!(viewer.word("interrupted").await["interrupted"], true);
    assert_eq!(viewer.word("interrupted").await["interrupted"], false);
    viewer.keyframe().await;
}

#[tokio::test]
async fn a_frozen_vm_is_told_and_does_not_do_later_what_was_meant_meanwhile() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    scene.agent.desktop().freeze(true);
    assert_eq!(viewer.word("interrupted").await["interrupted"], true);
    viewer.does(&click(6));
    scene.agent.desktop().freeze(false);
    assert_eq!(viewer.word("interrupted").await["interrupted"], false);
    viewer.does(&click(16));
    scene.injected(&click(16)).await;
    assert!(!scene.inputs().contains(&click(6)));
}

#[tokio::test]
async fn ten_thousand_events_at_once_are_bounded_and_hurt_no_other_viewer() {
    let scene = Scene::new().await;
    let mut wild = scene.join(Role::Control).await;
    let mut other = scene.join(Role::View).await;
    wild.keyframe().await;
    for x in 0..10_000 {
        wild.does(&click(x % 1280));
    }
    assert_eq!(wild.refused().await, "too_fast");
    other.keyframe().await;
    let deliberate = || scene.inputs().iter().filter(|event| event.is_deliberate()).count();
    until("the first ones are done", async || (deliberate() >= 1000).then_some(())).await;
    let let_go = || scene.inputs().iter().rev().take(3).any(|event| *event == InputEvent::ReleaseAll);
    until("what was held is let go", async || let_go().then_some(())).await;
    let clicks = deliberate();
    assert!((1000..9000).contains(&clicks), "{clicks} passed");
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_and_the_viewer_stays() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    viewer.0.link.input(&[0xff, 1, 2]);
    assert_eq!(viewer.refused().await, "bad_message");
    viewer.0.link.input(&vec![0x35; 5000]);
    assert_eq!(viewer.refused().await, "too_long");
    viewer.0.link.words(&"x".repeat(2 << 20));
    let long = json!({ "type": "clipboard", "text": "x".repeat((256 << 10) + 1) });
    viewer.says(long);
    viewer.does(&InputEvent::Move { x: u16::MAX, y: u16::MAX });
    scene.injected(&InputEvent::Move { x: 1279, y: 799 }).await;
    viewer.says(json!({ "type": "ping", "at": 1.5 }));
    assert_eq!(viewer.word("pong").await["at"], 1.5);
    assert!(!scene.agent.desktop().heard().iter().any(|told| matches!(told, ToDesktop::Clipboard(_))));
}

#[tokio::test]
async fn clipboard_texts_go_the_ways_that_the_policy_allows() {
    for (policy, goes_in, goes_out) in
        [("both", true, true), ("in", true, false), ("out", false, true), ("off", false, false)]
    {
        let app = TestApp::builder().setting("desktop_clipboard", policy).start().await;
        let scene = Scene::of(app).await;
        let mut viewer = scene.join(Role::Control).await;
        let mut looker = scene.join(Role::View).await;
        assert_eq!(viewer.word("hello").await["clipboard"], policy);
        viewer.keyframe().await;
        viewer.says(json!({ "type": "clipboard", "text": "FAKE in" }));
        if goes_in {
            scene.told("the text", |told| *told == ToDesktop::Clipboard("FAKE in".to_owned())).await;
        } else {
            assert_eq!(viewer.refused().await, "clipboard_policy", "{policy}");
        }
        scene.agent.desktop().say(FromDesktop::Clipboard("FAKE out".to_owned()));
        scene.agent.desktop().say(FromDesktop::Hello { version: 1, width: 900, height: 700 });
        let mut said = false;
        loop {
            let Some(Outgoing::Text(text)) = timeout(DEADLINE, viewer.0.words.next()).await.unwrap() else {
                continue;
            };
            said |= text.contains("FAKE out");
            if text.contains("\"width\":900") {
                break;
            }
        }
        assert_eq!(said, goes_out, "{policy}");
        loop {
            let Some(Outgoing::Text(text)) = timeout(DEADLINE, looker.0.words.next()).await.unwrap() else {
                continue;
            };
            assert!(!text.contains("FAKE"), "only the viewer in control gets clipboard texts");
            if text.contains("\"width\":900") {
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_desktop_takes_the_size_of_the_viewer_in_control() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    let mut looker = scene.join(Role::View).await;
    viewer.keyframe().await;
    looker.says(json!({ "type": "resize", "width": 640, "height": 480, "scale": 100 }));
    assert_eq!(looker.refused().await, "view_only");
    for width in 900..1000 {
        viewer.says(json!({ "type": "resize", "width": width, "height": 701, "scale": 150 }));
    }
    let is_resize = |told: &ToDesktop| matches!(told, ToDesktop::Resize { .. });
    let resize = ToDesktop::Resize { width: 998, height: 700, scale: 150 };
    scene.told("the size", |told| *told == resize).await;
    let resizes = scene.agent.desktop().heard().into_iter().filter(is_resize).count();
    assert!(resizes <= 3, "{resizes} resizes");
    until("all are told", async || (looker.word("size").await["width"] == 998).then_some(())).await;
    let asked = || scene.agent.desktop().heard().into_iter().filter(|told| *told == resize).count();
    let before = asked();
    scene.agent.desktop().quit();
    until("the program that has started anew is told as well", async || (asked() > before).then_some(()))
        .await;
}

#[tokio::test]
async fn the_encoder_follows_the_path_of_the_viewer_in_control() {
    let scene = Scene::new().await;
    let viewer = scene.join_by(Role::Control, Lane::WebRtc).await;
    let looker = scene.join_by(Role::View, Lane::WebRtc).await;
    let is_rate = |told: &ToDesktop| matches!(told, ToDesktop::Rate { .. });
    let rate = |kbps| ToDesktop::Rate { kbps, fps: 60, mode: ContentMode::Auto };
    scene.told("a first rate", is_rate).await;
    looker.0.link.estimate(700);
    viewer.0.link.estimate(10_000);
    scene.last_told("90 percent", is_rate, rate(9000)).await;
    viewer.0.link.estimate(100);
    scene.last_told("the least", is_rate, rate(300)).await;
    viewer.0.link.estimate(1_000_000);
    scene.last_told("the most", is_rate, rate(20_000)).await;
    assert!(!scene.agent.desktop().heard().contains(&rate(630)));
}

#[tokio::test]
async fn nothing_is_captured_while_nobody_watches() {
    let scene = Scene::new().await;
    let viewer = scene.join(Role::Control).await;
    scene.told("somebody watches", |told| *told == ToDesktop::Watch(true)).await;
    drop(viewer);
    scene.told("nobody watches", |told| *told == ToDesktop::Watch(false)).await;
    let mut again = scene.join(Role::Control).await;
    assert!(again.frame().await.key);
}

#[tokio::test]
async fn viewers_are_told_the_end_and_the_clipboard_is_wiped() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    scene.app.call("POST", &format!("/api/auth/session/{}/cancel", scene.id), None).await;
    let words = viewer.last_words().await;
    assert_eq!(words.last().unwrap()["type"], "ended", "{words:?}");
    while timeout(DEADLINE, viewer.0.frames.next()).await.expect("pictures end").is_some() {}
    scene.app.closed(scene.id).await;
    let late = scene.app.app.desktops.join(scene.id, Role::View, Lane::WebRtc).await;
    assert!(matches!(late, Err(JoinError::NoDesktop)));
}

#[tokio::test]
async fn a_vm_that_dies_ends_its_desktop() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    viewer.keyframe().await;
    scene.app.driver.kill(scene.vm);
    assert_eq!(viewer.last_words().await.last().unwrap()["type"], "ended");
}

#[tokio::test]
async fn no_more_than_the_allowed_viewers_join_and_a_kept_place_is_kept() {
    let app = TestApp::builder().setting("desktop_viewers_max", "2").start().await;
    let scene = Scene::of(app).await;
    let first = scene.join(Role::Control).await;
    let _second = scene.join(Role::Control).await;
    let full =
        |joined: Result<Joined, JoinError>| matches!(joined, Err(JoinError::TooManyViewers { max: 2 }));
    let desktops = &scene.app.app.desktops;
    assert!(full(desktops.join(scene.id, Role::View, Lane::WebRtc).await));
    let token = first.0.link.reconnect_token();
    drop(first);
    assert!(full(desktops.join(scene.id, Role::View, Lane::WebRtc).await));
    let mut again = scene.rejoin(&token).await;
    assert_eq!(again.word("hello").await["role"], "control");
}

#[tokio::test]
async fn figures_are_told_each_second_and_gathered_for_prometheus() {
    let scene = Scene::new().await;
    let mut viewer = scene.join(Role::Control).await;
    let frame = viewer.keyframe().await;
    viewer.0.link.sent(&frame, frame.data.len());
    viewer.does(&click(1));
    loop {
        let frame = viewer.frame().await;
        viewer.0.link.sent(&frame, 2000);
        if frame.input_seq > 0 && !frame.keep_alive {
            break;
        }
    }
    viewer.says(
        json!({ "type": "report", "rttMs": 4.0, "presentMs": 3.0, "inputToPictureMs": 21.0, "freezes": 0 }),
    );
    let stats = until("figures", async || {
        let stats = viewer.word("stats").await;
        stats["inputServerMs"].is_number().then_some(stats)
    })
    .await;
    assert!(stats["serverMs"].as_f64().is_some_and(|ms| (1.0..10_000.0).contains(&ms)), "{stats}");
    assert!(stats["kbps"].as_f64() > Some(1.0), "{stats}");
    let answer = scene.app.call("GET", "/metrics", None).await;
    for line in [
        "polydev_sessions_active 1",
        "polydev_desktop_viewers{lane=\"websocket\"} 1",
        "polydev_desktop_input_to_picture_seconds_count{lane=\"websocket\"} 1",
        "polydev_desktop_glass_to_glass_seconds_count{lane=\"websocket\"} 1",
        "polydev_desktop_input_server_seconds_count{lane=\"websocket\"} 1",
        "polydev_desktop_inputs_total 1",
    ] {
        assert!(answer.text.lines().any(|found| found == line), "{line} is missing in:\n{}", answer.text);
    }
}
