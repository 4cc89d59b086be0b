//! CLI VMs that sleep.

use axum::http::StatusCode;
use futures::{SinkExt, StreamExt};
use polydev_core::{
    ids::VmId,
    wire::{FilePut, Request as Ask, files::FileBytes},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    app::{TestApp, until},
    sockets::{connect, listen},
};

async fn workspace(app: &TestApp) -> String {
    let answer = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn state(app: &TestApp, id: &str) -> String {
    app.call("GET", &format!("/api/vms/{id}"), None).await.json()["state"].as_str().unwrap().to_owned()
}

async fn reaches(app: &TestApp, id: &str, wanted: &str) {
    until(wanted, async || (state(app, id).await == wanted).then_some(())).await;
}

#[tokio::test]
async fn a_workspace_that_nobody_uses_falls_asleep_and_its_next_use_wakes_it() {
    let app = TestApp::builder().setting("hibernate_after_s", "1").start().await;
    let address = listen(&app).await;
    let id = workspace(&app).await;
    let vm: VmId = id.parse().unwrap();
    let agent = app.driver.agent(vm).unwrap();
    reaches(&app, &id, "hibernated").await;
    assert!(agent.requests().contains(&Ask::Quiesce), "its agent was told to write everything out");
    assert_eq!(app.app.slots.count().0, 1, "it keeps its place");

    // A terminal wakes it, and keeps it awake for as long as it is open.
    let mut socket = connect(&app, address, &format!("/api/vms/{id}/terminal"), &[]).await.unwrap();
    assert_eq!(state(&app, &id).await, "running");
    socket.send(Message::Binary(b"hello".to_vec().into())).await.unwrap();
    while !matches!(socket.next().await.unwrap().unwrap(), Message::Binary(bytes) if &bytes[..] == b"hello") {
    }
    let refused = app.call("POST", &format!("/api/vms/{id}/hibernate"), None).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "conflict"));
    drop(socket);
    reaches(&app, &id, "hibernated").await;

    // So does whatever asks for the workspace.
    assert_eq!(workspace(&app).await, id);
    assert!(std::sync::Arc::ptr_eq(&agent, &app.driver.agent(vm).unwrap()), "what ran in it still does");
}

#[tokio::test]
async fn a_workspace_is_put_to_sleep_and_woken_by_request() {
    let app = TestApp::start().await;
    let id = workspace(&app).await;
    let ask = async |what: &str| app.call("POST", &format!("/api/vms/{id}/{what}"), None).await;
    for _ in 0..2 {
        let answer = ask("hibernate").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.json()["state"], "hibernated");
    }
    assert_eq!(app.app.machines.status().hibernated, 1);
    for _ in 0..2 {
        let answer = ask("resume").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(
            (&answer.json()["vm"]["state"], &answer.json()["memoryLost"]),
            (&json!("running"), &Value::Null)
        );
    }
    let unknown = VmId::from_uuid(uuid::Uuid::new_v4());
    let missing = app.call("POST", &format!("/api/vms/{unknown}/hibernate"), None).await;
    assert_eq!((missing.status, missing.code().as_str()), (StatusCode::NOT_FOUND, "not_found"));

    // It can be removed asleep; then it can be neither put to sleep nor woken.
    assert_eq!(ask("hibernate").await.status, StatusCode::OK);
    assert_eq!(app.call("DELETE", &format!("/api/vms/{id}"), None).await.status, StatusCode::OK);
    reaches(&app, &id, "destroyed").await;
    for what in ["hibernate", "resume"] {
        assert_eq!(ask(what).await.code(), "conflict");
    }
    assert!(app.driver.agent(id.parse().unwrap()).is_none());
    assert_eq!(app.app.slots.count().0, 0);
}

#[tokio::test]
async fn memory_that_was_lost_is_told_and_the_workspace_goes_on_with_its_disk() {
    let app = TestApp::start().await;
    let id = workspace(&app).await;
    let vm: VmId = id.parse().unwrap();
    let (running, in_use) = app.app.workspaces.ensure(&"alice".parse().unwrap()).await.unwrap();
    let data = FileBytes::new(b"FAKE content".to_vec());
    let put = FilePut { path: "kept.txt".to_owned(), mode: 0o600, data, merge_json: Vec::new() };
    running.agent.request(Ask::PutFiles { files: vec![put] }).await.unwrap();
    drop((running, in_use));
    let before = app.driver.agent(vm).unwrap();
    app.call("POST", &format!("/api/vms/{id}/hibernate"), None).await;
    app.driver.damage_memory(vm);
    let answer = app.call("POST", &format!("/api/vms/{id}/resume"), None).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.json()["memoryLost"].as_str().unwrap().contains("damaged"), "{}", answer.text);
    assert!(!std::sync::Arc::ptr_eq(&before, &app.driver.agent(vm).unwrap()), "it started anew");
    let (running, _in_use) = app.app.workspaces.ensure(&"alice".parse().unwrap()).await.unwrap();
    let files = vec![polydev_core::wire::FileGet { path: "kept.txt".to_owned(), optional: false }];
    running.agent.request(Ask::GetFiles { files }).await.expect("its disk is kept");
}

#[tokio::test]
async fn workspaces_that_sleep_do_so_through_a_crash_and_wake_for_a_credential() {
    let app = TestApp::start().await;
    let vm = workspace(&app).await;
    app.call("POST", &format!("/api/vms/{vm}/hibernate"), None).await;
    let app = app.crash().await.start().await;
    assert_eq!(state(&app, &vm).await, "hibernated");
    assert_eq!(app.app.slots.count().0, 1);
    let id = app.begin("alice").await;
    let (browser, agent) = app.to_the_person(id).await;
    app.finish_login(browser, &agent, "{\"token\":\"FAKE-token\"}").await;
    let closed = app.closed(id).await;
    assert_eq!(
        (closed["state"].as_str(), closed["cliVmId"].as_str()),
        (Some("succeeded"), Some(vm.as_str()))
    );
    assert_eq!(state(&app, &vm).await, "running");
}

#[tokio::test]
async fn a_workspace_that_the_host_has_no_room_for_after_a_crash_sleeps_on() {
    let app = TestApp::start().await;
    let id = workspace(&app).await;
    let vm: VmId = id.parse().unwrap();
    let (running, in_use) = app.app.workspaces.ensure(&"alice".parse().unwrap()).await.unwrap();
    let (slot, agent) = (running.slot, app.driver.agent(vm).unwrap());
    drop((running, in_use));
    app.call("POST", &format!("/api/vms/{id}/hibernate"), None).await;
    // As if the controller had ended before it heard that the VM sleeps.
    app.app.store.vm_running(vm, slot).await.unwrap();
    let app = app.crash().await.without_room().start().await;
    let refused = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await;
    assert_eq!(refused.code(), "no_capacity", "{}", refused.text);
    let app = app.crash().await.start().await;
    assert_eq!(workspace(&app).await, id);
    assert!(std::sync::Arc::ptr_eq(&agent, &app.driver.agent(vm).unwrap()), "what ran in it still does");
}

#[tokio::test]
async fn a_workspace_whose_host_goes_away_while_it_falls_asleep_is_there_again_with_it() {
    let mut app = TestApp::builder().with_host_apart().start().await;
    let id = workspace(&app).await;
    let vm: VmId = id.parse().unwrap();
    let agent = app.driver.agent(vm).unwrap();
    app.host.as_mut().unwrap().kill().await;
    let refused = app.call("POST", &format!("/api/vms/{id}/hibernate"), None).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    app.host.as_mut().unwrap().start_again();
    let found = until("the workspace is there", async || {
        let answer = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await;
        (answer.status == StatusCode::OK).then(|| answer.json()["id"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(found, id);
    assert!(std::sync::Arc::ptr_eq(&agent, &app.driver.agent(vm).unwrap()), "what ran in it still does");
}
