use axum::http::StatusCode;
use polydev_core::wire::{AgentEvent, Request, UrlYields};
use serde_json::json;

use crate::app::{SIGN_IN_URL, TOKEN, TestApp};

#[tokio::test]
async fn a_sign_in_ends_with_the_files_in_the_cli_vm_and_the_browser_vm_gone() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.finish_login(vm, &agent, &format!("{{\"token\":\"{TOKEN}\"}}")).await;
    let session = app.closed(id).await;
    assert_eq!(session["state"], "succeeded", "{session:#}");
    let steps: Vec<_> =
        session["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str().unwrap()).collect();
    for step in [
        "vm_requested",
        "vm_ready",
        "cli_started",
        "url_captured",
        "desktop_ready",
        "credential_seen",
        "sealed",
        "transferred",
        "closed",
    ] {
        assert!(steps.contains(&step), "{step} is missing in {steps:?}");
    }
    let vms = app.vms().await;
    assert_eq!(vms.len(), 1, "{vms:?}");
    assert_eq!((vms[0]["kind"].as_str(), &vms[0]["id"]), (Some("cli"), &session["cliVmId"]));
    let cli_vm = session["cliVmId"].as_str().unwrap().parse().unwrap();
    let asked = app.driver.agent(cli_vm).unwrap().requests();
    let put = asked.iter().find_map(|ask| match ask {
        Request::PutFiles { files } => Some(files.clone()),
        _ => None,
    });
    let put = put.expect("the files were handed over");
    assert_eq!((put[0].path.as_str(), put[0].mode), (".probe/auth.json", 0o600));
    assert!(String::from_utf8_lossy(&put[0].data.0).contains(TOKEN));
    let receipt = app.call("GET", &format!("/api/auth/session/{id}/receipt"), None).await.json();
    assert_eq!(
        (receipt["browserVmGone"].as_bool(), receipt["credential"]["version"].as_u64()),
        (Some(true), Some(1))
    );
}

#[tokio::test]
async fn no_token_and_no_sign_in_address_is_in_any_file_of_the_controller() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, agent) = app.to_the_person(id).await;
    app.finish_login(vm, &agent, &format!("{{\"token\":\"{TOKEN}\"}}")).await;
    app.closed(id).await;
    let database = app.database();
    app.app.store.close().await;
    for entry in std::fs::read_dir(database.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for secret in [TOKEN, "FAKEstate0123456789"] {
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
                "{secret} is in {}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn a_second_sign_in_stores_a_new_version_in_the_same_cli_vm() {
    let app = TestApp::start().await;
    let mut cli_vms = Vec::new();
    for round in 1..=2 {
        let id = app.begin("alice").await;
        let (vm, agent) = app.to_the_person(id).await;
        app.finish_login(vm, &agent, "{\"token\":\"FAKE-token\"}").await;
        let session = app.closed(id).await;
        assert_eq!(session["state"], "succeeded", "{session:#}");
        cli_vms.push(session["cliVmId"].clone());
        let stored = app.call("GET", "/api/credentials?userId=alice", None).await.json();
        assert_eq!(stored["credentials"][0]["version"], round);
    }
    assert_eq!(cli_vms[0], cli_vms[1]);
}

#[tokio::test]
async fn a_second_start_attaches_to_the_one_under_way() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let body = json!({ "userId": "alice", "provider": "probe_alias" });
    let again = app.call("POST", "/api/auth/start", Some(body)).await.json();
    let found = (again["attached"].as_bool(), again["sessionId"].as_str());
    assert_eq!(found, (Some(true), Some(id.to_string().as_str())));
    assert_ne!(app.begin("bob").await, id);
}

#[tokio::test]
async fn a_repeated_key_finds_the_first_sign_in_even_after_its_end() {
    let app = TestApp::start().await;
    let start = async || {
        let request = app
            .request("POST", "/api/auth/start")
            .header("authorization", format!("Bearer {}", app.token))
            .header("content-type", "application/json")
            .header("idempotency-key", "key-1");
        let body = json!({ "userId": "alice", "provider": "probe" }).to_string();
        app.send(request.body(body.into()).unwrap()).await.json()
    };
    let first = start().await;
    let id = first["sessionId"].as_str().unwrap().parse().unwrap();
    app.to_the_person(id).await;
    app.call("POST", &format!("/api/auth/session/{id}/cancel"), None).await;
    app.closed(id).await;
    let again = start().await;
    assert_eq!((again["attached"].as_bool(), &again["sessionId"]), (Some(true), &first["sessionId"]));
    assert_ne!(app.begin("alice").await, id, "without the key a new one is started");
}

#[tokio::test]
async fn events_tell_the_present_state_first_and_say_when_nothing_can_change_any_more() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    app.to_the_person(id).await;
    app.call("POST", &format!("/api/auth/session/{id}/cancel"), None).await;
    let version = app.closed(id).await["version"].to_string();
    let path = format!("/api/auth/session/{id}/events");
    let told = app.call("GET", &path, None).await;
    assert_eq!(told.headers["content-type"], "text/event-stream");
    for part in ["event: session", &format!("id: {version}"), "\"state\":\"cancelled\""] {
        assert!(told.text.contains(part), "{part} is missing in {}", told.text);
    }
    let request = app.request("GET", &path).header("authorization", format!("Bearer {}", app.token));
    let request = request.header("last-event-id", version).body(axum::body::Body::empty()).unwrap();
    assert_eq!(app.send(request).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_address_that_no_rule_accepts_is_not_followed() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.asked(id, |ask| matches!(ask, Request::StartLogin(_))).await;
    let bad = "https://evil.example.test/authorize?state=FAKE".to_owned();
    app.driver.emit(vm, AgentEvent::UrlCaptured { url: bad, yields: UrlYields::Loopback });
    app.driver.emit(vm, AgentEvent::UrlCaptured { url: SIGN_IN_URL.to_owned(), yields: UrlYields::Loopback });
    app.session_until(id, "the good one is taken", |s| s["steps"].to_string().contains("url_captured")).await;
    let url = app.call("GET", &format!("/api/auth/session/{id}/oauth-url"), None).await.json();
    assert_eq!(url["oauthURL"], SIGN_IN_URL);
}

#[tokio::test]
async fn a_callback_address_and_a_code_reach_the_tool_only_in_their_own_shape() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    let (vm, _) = app.to_the_person(id).await;
    let path = format!("/api/auth/session/{id}/input");
    for bad in [
        json!({ "callbackUrl": "http://localhost:9999/callback?code=FAKE&state=FAKEstate0123456789" }),
        json!({ "callbackUrl": "http://evil.example.test:1455/callback?code=FAKE&state=FAKEstate0123456789" }),
        json!({ "callbackUrl": "http://localhost:1455/callback?code=FAKE&state=wrong" }),
        json!({ "pasteCode": "not a code" }),
    ] {
        let answer = app.call("POST", &path, Some(bad.clone())).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "input_refused"),
            "{bad}"
        );
    }
    let both = app.call("POST", &path, Some(json!({ "pasteCode": "FAKE-a", "callbackUrl": "x" }))).await;
    assert_eq!(both.code(), "invalid_request");
    let good = "http://localhost:1455/callback?code=FAKEcode&state=FAKEstate0123456789";
    assert_eq!(app.call("POST", &path, Some(json!({ "callbackUrl": good }))).await.status, StatusCode::OK);
    assert_eq!(
        app.call("POST", &path, Some(json!({ "pasteCode": "FAKE-abc1" }))).await.status,
        StatusCode::OK
    );
    let asked = app.driver.agent(vm).unwrap().requests();
    assert!(asked.iter().any(|ask| matches!(ask, Request::ReplayCallback { url } if url == good)));
    assert!(asked.iter().any(|ask| matches!(ask, Request::LoginInput { text } if text == "FAKE-abc1\n")));
}

#[tokio::test]
async fn a_cancelled_sign_in_leaves_no_vm_and_can_be_cancelled_twice() {
    let app = TestApp::start().await;
    let id = app.begin("alice").await;
    app.to_the_person(id).await;
    let path = format!("/api/auth/session/{id}/cancel");
    assert_eq!(app.call("POST", &path, None).await.status, StatusCode::OK);
    assert_eq!(app.closed(id).await["state"], "cancelled");
    assert_eq!(app.call("POST", &path, None).await.status, StatusCode::OK);
    assert!(app.vms().await.is_empty());
    assert_eq!(app.app.slots.count().0, 0);
}
