use axum::http::StatusCode;
use polydev_core::wire::{AgentEvent, LoginEnd, Request};
use serde_json::json;

use crate::app::TestApp;

async fn no_vm_is_left(app: &TestApp) {
    assert!(app.vms().await.is_empty());
    assert_eq!(app.app.slots.count().0, 0);
}

#[tokio::test]
async fn a_vm_that_dies_at_its_start_ends_the_sign_in_and_keeps_its_log() {
    let app = TestApp::start().await;
    app.driver.fail_next_start("kernel panic: FAKE");
    let id = app.begin("alice").await;
    let session = app.closed(id).await;
    assert_eq!(
        (session["state"].as_str(), session["error"]["code"].as_str()),
        (Some("failed"), Some("vm_start_failed"))
    );
    let vm = session["browserVmId"].as_str().unwrap();
    let log = app.call("GET", &format!("/api/vms/{vm}/logs/console"), None).await;
    assert!(log.text.contains("kernel panic"), "{}", log.text);
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn a_tool_that_ends_early_is_told_from_one_that_refuses() {
    let app = TestApp::start().await;
    let early = app.begin("alice").await;
    let (vm, _) = app.asked(early, |ask| matches!(ask, Request::StartLogin(_))).await;
    let end = LoginEnd::Failed { exit_code: Some(3), reason: "no network".to_owned() };
    app.driver.emit(vm, AgentEvent::LoginEnded { end, output_tail: String::new() });
    assert_eq!(app.closed(early).await["error"]["code"], "cli_exited_early");
    let late = app.begin("alice").await;
    let (vm, _) = app.to_the_person(late).await;
    let end = LoginEnd::Failed { exit_code: Some(1), reason: "access denied".to_owned() };
    app.driver.emit(vm, AgentEvent::LoginEnded { end, output_tail: String::new() });
    assert_eq!(app.closed(late).await["error"]["code"], "login_failed");
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn a_tool_that_never_gives_an_address_and_a_person_who_never_comes_end_the_sign_in() {
    let app = TestApp::builder().limits(|limits| limits.url_ms = 50).start().await;
    let id = app.begin("alice").await;
    assert_eq!(app.closed(id).await["error"]["code"], "url_timeout");
    no_vm_is_left(&app).await;
    let app = TestApp::builder().limits(|limits| limits.user_ms = 50).start().await;
    let id = app.begin("alice").await;
    app.to_the_person_or_later(id).await;
    let session = app.closed(id).await;
    assert_eq!(
        (session["state"].as_str(), session["error"]["code"].as_str()),
        (Some("expired"), Some("user_timeout"))
    );
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn a_truncated_or_incomplete_credential_file_is_refused() {
    for file in ["{\"token\":\"FAK", "{}", "{\"token\":\"\"}", "{\"token\":null}"] {
        let app = TestApp::start().await;
        let id = app.begin("alice").await;
        let (vm, agent) = app.to_the_person(id).await;
        app.finish_login(vm, &agent, file).await;
        let session = app.closed(id).await;
        assert_eq!(session["error"]["code"], "credential_incomplete", "{file}: {session:#}");
        let stored = app.call("GET", "/api/credentials", None).await.json();
        assert_eq!(stored["credentials"].as_array().unwrap().len(), 0);
        no_vm_is_left(&app).await;
    }
}

#[tokio::test]
async fn a_browser_vm_that_is_killed_while_the_person_types_ends_the_sign_in() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    app.driver.kill(vm);
    let session = app.closed(id).await;
    assert_eq!(
        (session["state"].as_str(), session["error"]["code"].as_str()),
        (Some("failed"), Some("vm_lost"))
    );
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn a_cli_vm_that_dies_is_made_anew_when_it_is_needed() {
    let app = TestApp::start().await;
    let make = async || app.call("POST", "/api/vms", Some(json!({ "userId": "alice" }))).await.json();
    let first = make().await["id"].as_str().unwrap().to_owned();
    assert_eq!(make().await["id"], first.as_str());
    app.driver.kill(first.parse().unwrap());
    crate::app::until("the lost VM is gone", async || app.vms().await.is_empty().then_some(())).await;
    let second = make().await["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_disk_that_is_full_while_sealing_ends_the_sign_in_with_a_clear_state() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.app.store.forbid_growth().await.unwrap();
    let large = format!("{{\"token\":\"FAKE-{}\"}}", "x".repeat(100_000));
    app.finish_login(vm, &agent, &large).await;
    let session = app.closed(id).await;
    assert_eq!(session["state"], "failed", "{session:#}");
    assert_eq!(session["error"]["code"], "no_space", "{session:#}");
    let stored = app.call("GET", "/api/credentials", None).await.json();
    assert_eq!(stored["credentials"].as_array().unwrap().len(), 0);
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn without_an_image_starts_say_so_and_all_else_works() {
    let app = TestApp::builder().without_image().start().await;
    let user = json!({ "userId": "alice" });
    let sign_in = json!({ "userId": "alice", "provider": "probe" });
    for (path, body) in [("/api/auth/start", sign_in), ("/api/vms", user)] {
        let answer = app.call("POST", path, Some(body)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "image_missing"),
            "{path}: {}",
            answer.text
        );
    }
    for path in ["/health", "/api/providers", "/api/vms", "/api/credentials"] {
        assert_eq!(app.call("GET", path, None).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(app.app.sessions.active(), 0);
    no_vm_is_left(&app).await;
}

#[tokio::test]
async fn files_of_a_failed_browser_vm_are_kept_on_request_until_they_are_removed() {
    let app = TestApp::builder().setting("keep_failed_browser_vms", "true").start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    app.driver.kill(vm);
    assert_eq!(app.closed(id).await["error"]["code"], "vm_lost");

    let kept = app.host_path("failed").join(vm.to_string());
    assert!(kept.join("record.json").is_file(), "{kept:?}");
    let listed = app.vms().await;
    let shown = |vm: &serde_json::Value| (vm["id"].clone(), vm["state"].clone(), vm["filesKept"].clone());
    let wanted = (json!(vm.to_string()), json!("destroyed"), json!(true));
    assert_eq!(listed.iter().map(shown).collect::<Vec<_>>(), [wanted], "{listed:#?}");
    for log in ["console", "driver", "agent"] {
        let answer = app.call("GET", &format!("/api/vms/{vm}/logs/{log}"), None).await;
        assert_eq!(answer.status, StatusCode::OK, "{log}: {}", answer.text);
    }
    assert_eq!(app.app.slots.count().0, 0, "files take no slot");

    assert_eq!(app.call("DELETE", &format!("/api/vms/{vm}"), None).await.status, StatusCode::OK);
    assert!(!kept.exists());
    no_vm_is_left(&app).await;
    let console = app.call("GET", &format!("/api/vms/{vm}/logs/console"), None).await;
    assert_eq!(console.status, StatusCode::OK, "the archived logs stay");
}

#[tokio::test]
async fn files_of_vms_are_not_kept_unasked_or_of_good_sign_ins() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    app.driver.kill(vm);
    app.closed(id).await;
    assert!(!app.host_path("failed").exists());

    let app = TestApp::builder().setting("keep_failed_browser_vms", "true").start().await;
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.finish_login(vm, &agent, "{\"token\":\"FAKE-token\"}").await;
    assert_eq!(app.closed(id).await["state"], "succeeded");
    assert!(!app.host_path("failed").join(vm.to_string()).exists());
}
