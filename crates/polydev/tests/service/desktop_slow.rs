//! Viewers that take pictures more slowly than a guest makes them.

use polydev::desktop::talk::Role;
use polydev_core::desktop::ToDesktop;

use crate::{app::until, desktop::Scene};

#[tokio::test]
async fn a_slow_viewer_slows_nobody_and_goes_on_with_a_keyframe() {
    let scene = Scene::new().await;
    let mut quick = scene.join(Role::Control).await;
    let mut slow = scene.join(Role::View).await;
    let mut last = quick.keyframe().await.seq;
    slow.keyframe().await;
    for _ in 0..30 {
        scene.agent.desktop().show(false, 50_000);
        let seq = quick.frame().await.seq;
        assert!(seq > last, "{seq} after {last}");
        last = seq;
    }
    let mut before: Option<u32> = None;
    loop {
        let frame = slow.frame().await;
        assert!(
            frame.key || before == Some(frame.seq - 1) || before.is_none(),
            "{} after {before:?}",
            frame.seq
        );
        before = Some(frame.seq);
        if frame.key {
            break;
        }
    }
    let stats = until("drops are counted", async || {
        let stats = slow.word("stats").await;
        (stats["dropped"].as_u64() > Some(5)).then_some(stats)
    })
    .await;
    assert!(stats["keyframes"].as_u64().is_some(), "{stats}");
}

#[tokio::test]
async fn a_guest_holds_its_pictures_while_they_would_only_wait_for_everybody() {
    let scene = Scene::new().await;
    let is_hold = |told: &ToDesktop| matches!(told, ToDesktop::Hold(_));
    let holds = || scene.agent.desktop().heard().iter().filter(|told| is_hold(told)).count();
    let mut first = scene.join(Role::Control).await;
    let mut last = first.keyframe().await.seq;
    // What comes by itself each second may be among them.
    (0..3).for_each(|_| scene.agent.desktop().show(false, 5000));
    scene.last_told("to hold", is_hold, ToDesktop::Hold(true)).await;
    while first.frame().await.seq < last + 3 {}
    scene.last_told("to go on", is_hold, ToDesktop::Hold(false)).await;

    // One who takes everything does not suffer from one who takes nothing.
    let second = scene.join(Role::View).await;
    last = first.keyframe().await.seq;
    let before = holds();
    for _ in 0..20 {
        scene.agent.desktop().show(false, 5000);
        while first.frame().await.seq <= last {}
        last += 1;
    }
    assert_eq!(holds(), before);
    drop(second);
}
