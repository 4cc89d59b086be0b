//! Sign-ins that are given a browser VM that was ready.

use polydev_core::{
    ids::{SessionId, VmId},
    wire::Request as Ask,
};
use polydev_host::{VmKind, WarmPlan};

use crate::app::{TestApp, until};

/// Has one VM kept ready and waits for it.
async fn one_is_ready(app: &TestApp) -> VmId {
    let (size, desktop_px) = (app.app.config.vms.browser, app.app.config.vms.desktop_px);
    let plan = WarmPlan { low: 1, high: 1, vcpus: size.vcpus, memory_mib: size.memory_mib, desktop_px };
    app.driver.paint_desktops();
    app.app.machines.set_warm(plan).await.unwrap();
    until("a VM is warm", async || {
        let ready = app.app.machines.status().warm == 1;
        let waits = |id: &VmId| names(app, *id).iter().all(|name| *name == format!("warm-{}", id.short()));
        app.driver.ids().into_iter().find(|id| ready && waits(id))
    })
    .await
}

/// The names that a VM was given, one after the other.
fn names(app: &TestApp, id: VmId) -> Vec<String> {
    let asked = app.driver.agent(id).map(|agent| agent.requests()).unwrap_or_default();
    let name = |ask: Ask| match ask {
        Ask::Identify(identity) => Some(identity.hostname),
        _ => None,
    };
    asked.into_iter().filter_map(name).collect()
}

/// The VM in which the login of a sign-in was begun.
async fn logs_in(app: &TestApp, id: SessionId) -> VmId {
    app.asked(id, |ask| matches!(ask, Ask::StartLogin(_))).await.0
}

async fn cancelled(app: &TestApp, id: SessionId) {
    app.call("POST", &format!("/api/auth/session/{id}/cancel"), None).await;
    app.closed(id).await;
}

#[tokio::test]
async fn a_sign_in_is_given_a_vm_that_was_ready_and_warm_ones_outlive_a_crash() {
    let app = TestApp::start().await;
    let warm = one_is_ready(&app).await;
    let app = app.crash().await.start().await;
    assert_eq!(app.app.slots.count().0, 0, "a VM that is nobody's takes no one's place");
    assert_eq!(one_is_ready(&app).await, warm, "the next controller takes it over");

    let id = app.begin("alice").await;
    let vm = logs_in(&app, id).await;
    assert_eq!(vm, warm);
    assert_eq!(names(&app, vm).last(), Some(&format!("browser-{}", vm.short())));
    let listed = app.vms().await;
    assert!(listed.iter().any(|it| it["id"] == vm.to_string() && it["kind"] == "browser"), "{listed:?}");
    cancelled(&app, id).await;
    assert!(app.driver.agent(vm).is_none(), "it is nobody's any more and gone");
}

#[tokio::test]
async fn a_vm_that_was_drawn_when_the_controller_crashed_is_handed_out_by_the_next_one() {
    let app = TestApp::start().await;
    let warm = one_is_ready(&app).await;
    let size = app.app.config.vms.browser;
    assert_eq!(app.app.machines.draw(&VmKind::Browser, size.vcpus, size.memory_mib).await, warm);
    let app = app.crash().await.start().await;
    assert_eq!(one_is_ready(&app).await, warm);
    let id = app.begin("alice").await;
    assert_eq!(logs_in(&app, id).await, warm);
    cancelled(&app, id).await;
}

#[tokio::test]
async fn a_vm_that_was_being_claimed_when_the_controller_crashed_is_removed_and_nothing_of_it_is_left() {
    let app = TestApp::start().await;
    let warm = one_is_ready(&app).await;
    app.driver.agent(warm).unwrap().hang_when_named();
    let id = app.begin("alice").await;
    let named = [format!("warm-{}", warm.short()), format!("browser-{}", warm.short())];
    until("it is told its name", async || (names(&app, warm) == named).then_some(())).await;
    let app = app.crash().await.start().await;
    let session = app.closed(id).await;
    assert_eq!(session["error"]["code"], "interrupted", "{session}");
    until("it is gone", async || app.driver.agent(warm).is_none().then_some(())).await;
    assert_eq!(app.app.slots.count().0, 0);

    // The person tries again and gets as far as with any other VM.
    let next = one_is_ready(&app).await;
    assert_ne!(next, warm);
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    assert_eq!(vm, next);
    app.finish_login(vm, &agent, "{\"token\":\"FAKE-token\"}").await;
    assert_eq!(app.closed(id).await["state"], "succeeded");
}

#[tokio::test]
async fn a_sign_in_goes_on_with_a_new_vm_when_its_warm_one_dies_while_it_is_claimed() {
    let app = TestApp::start().await;
    let warm = one_is_ready(&app).await;
    app.driver.agent(warm).unwrap().hang_when_named();
    let id = app.begin("alice").await;
    until("it is told its name", async || (names(&app, warm).len() == 2).then_some(())).await;
    app.driver.kill(warm);
    let vm = logs_in(&app, id).await;
    assert_eq!(
        (vm, names(&app, vm)),
        (warm, vec![format!("browser-{}", vm.short())]),
        "made anew under its id"
    );
    cancelled(&app, id).await;
}

#[tokio::test]
async fn a_controller_that_ends_in_order_leaves_no_vm_that_is_nobodys() {
    let app = TestApp::start().await;
    one_is_ready(&app).await;
    app.app.shut_down().await;
    assert_eq!(app.driver.ids(), []);
}
