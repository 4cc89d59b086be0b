use serde_json::json;

use crate::app::{TestApp, until};

#[tokio::test]
async fn a_sign_in_under_way_ends_clearly_after_a_crash_and_its_vm_is_removed() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    let driver = app.driver.clone();
    let app = app.crash().await.start().await;
    let session = app.closed(id).await;
    assert_eq!(
        (session["state"].as_str(), session["error"]["code"].as_str()),
        (Some("failed"), Some("interrupted"))
    );
    assert!(driver.agent(vm).is_none(), "the VM is still there");
    until("no VM is listed", async || app.vms().await.is_empty().then_some(())).await;
    assert_eq!(app.app.slots.count().0, 0);
}

#[tokio::test]
async fn cli_vms_and_credentials_outlive_a_crash() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.finish_login(vm, &agent, "{\"token\":\"FAKE-token\"}").await;
    let cli_vm = app.closed(id).await["cliVmId"].clone();
    let app = app.crash().await.start().await;
    assert_eq!(app.session(id).await["state"], "succeeded");
    let found = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await.json();
    assert_eq!((&found["id"], found["state"].as_str()), (&cli_vm, Some("running")));
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.finish_login(vm, &agent, "{\"token\":\"FAKE-token-2\"}").await;
    assert_eq!(app.closed(id).await["cliVmId"], cli_vm);
    let stored = app.call("GET", "/api/credentials?userId=alice", None).await.json();
    assert_eq!(stored["credentials"][0]["version"], 2);
}

#[tokio::test]
async fn a_shutdown_ends_sign_ins_and_leaves_cli_vms_running() {
    let app = TestApp::start().await;
    let cli_vm = app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await.json()["id"].clone();
    let id = app.begin("bob").await;
    let (vm, _) = app.to_the_person(id).await;
    app.app.shut_down().await;
    assert!(app.driver.agent(vm).is_none());
    assert!(app.driver.agent(cli_vm.as_str().unwrap().parse().unwrap()).is_some());
    let app = app.crash().await.start().await;
    assert_eq!(app.session(id).await["error"]["code"], "interrupted");
}
