use axum::{
    body::Body,
    http::{StatusCode, header},
};
use serde_json::{Value, json};

use crate::app::TestApp;

async fn start_with(app: &TestApp, kind: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = app.request("POST", "/api/auth/start");
    let request = request
        .header(header::AUTHORIZATION, format!("Bearer {}", app.token))
        .header(header::CONTENT_TYPE, kind);
    let answer = app.send(request.body(body.into()).unwrap()).await;
    (answer.status, answer.code())
}

#[tokio::test]
async fn every_bad_start_has_a_code_of_its_own() {
    let app = TestApp::start().await;
    let json = "application/json";
    let long = format!("{{\"userId\":\"a\",\"provider\":\"{}\"}}", "x".repeat(70_000));
    let cases: [(&str, &str, StatusCode, &str); 9] = [
        (json, r#"{"userId":"a","provider":"nope"}"#, StatusCode::NOT_FOUND, "unknown_provider"),
        (json, r#"{"userId":"#, StatusCode::BAD_REQUEST, "malformed_json"),
        (json, r#"{"userId":1,"provider":"probe"}"#, StatusCode::BAD_REQUEST, "invalid_request"),
        (json, r#"{"userId":"a","provider":"probe","extra":1}"#, StatusCode::BAD_REQUEST, "invalid_request"),
        (json, r#"{"userId":"../../etc","provider":"probe"}"#, StatusCode::BAD_REQUEST, "invalid_user_id"),
        (json, r#"{"userId":"a/b","provider":"probe"}"#, StatusCode::BAD_REQUEST, "invalid_user_id"),
        (
            json,
            r#"{"userId":"a","provider":"probe","lane":"device_code"}"#,
            StatusCode::BAD_REQUEST,
            "invalid_request",
        ),
        (
            "text/plain",
            r#"{"userId":"a","provider":"probe"}"#,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
        ),
        (json, &long, StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
    ];
    for (kind, body, status, code) in cases {
        let found = start_with(&app, kind, body.to_owned()).await;
        assert_eq!(found, (status, code.to_owned()), "{}", &body[..body.len().min(80)]);
    }
    assert_eq!(app.app.sessions.active(), 0);
}

#[tokio::test]
async fn a_start_without_a_free_slot_is_told_its_place_in_the_queue() {
    let app = TestApp::builder().slots(1).start().await;
    let first = app.begin("alice").await;
    app.to_the_person(first).await;
    let full =
        app.call("POST", "/api/auth/start", Some(json!({ "userId": "bob", "provider": "probe" }))).await;
    assert_eq!((full.status, full.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "slots_exhausted"));
    assert_eq!(full.json()["queuePosition"], 1);
    assert!(full.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn with_a_queue_the_next_one_starts_when_a_slot_comes_free() {
    let app = TestApp::builder().slots(1).setting("queue_max", "1").start().await;
    let first = app.begin("alice").await;
    app.to_the_person(first).await;
    let second = app.begin("bob").await;
    app.session_until(second, "it has a place in the queue", |s| s["queuePosition"] == 1).await;
    let full =
        app.call("POST", "/api/auth/start", Some(json!({ "userId": "carol", "provider": "probe" }))).await;
    assert_eq!((full.code().as_str(), &full.json()["queuePosition"]), ("slots_exhausted", &json!(2)));
    app.call("POST", &format!("/api/auth/session/{first}/cancel"), None).await;
    app.to_the_person(second).await;
}

#[tokio::test]
async fn requests_for_another_host_or_from_another_page_are_refused() {
    let app = TestApp::start().await;
    let bearer = format!("Bearer {}", app.token);
    for host in ["evil.example.test", "evil.example.test:4000", "127.0.0.1:4001", "127.0.0.1"] {
        let request =
            axum::http::Request::get("/health").header(header::HOST, host).body(Body::empty()).unwrap();
        assert_eq!(app.send(request).await.code(), "bad_host", "{host}");
    }
    for origin in ["http://evil.example.test", "https://127.0.0.1:4000", "http://127.0.0.1:4001", "null"] {
        let request = app
            .request("GET", "/api/vms")
            .header(header::AUTHORIZATION, &bearer)
            .header(header::ORIGIN, origin);
        assert_eq!(app.send(request.body(Body::empty()).unwrap()).await.code(), "bad_origin", "{origin}");
    }
    for host in ["127.0.0.1:4000", "localhost:4000", "[::1]:4000"] {
        let request =
            axum::http::Request::get("/health").header(header::HOST, host).body(Body::empty()).unwrap();
        assert_eq!(app.send(request).await.status, StatusCode::OK, "{host}");
    }
}

#[tokio::test]
async fn a_page_opens_with_a_link_and_must_say_where_it_comes_from() {
    let app = TestApp::start().await;
    let cookie = app.cookie().await;
    let with_cookie = |method: &str, path: &str| app.request(method, path).header(header::COOKIE, &cookie);
    let read = app.send(with_cookie("GET", "/api/vms").body(Body::empty()).unwrap()).await;
    assert_eq!(read.status, StatusCode::OK, "{}", read.text);
    let body = || Body::from(json!({ "userId": "a", "provider": "probe" }).to_string());
    let post = || with_cookie("POST", "/api/auth/start").header(header::CONTENT_TYPE, "application/json");
    assert_eq!(app.send(post().body(body()).unwrap()).await.code(), "bad_origin");
    let good = post().header(header::ORIGIN, "http://127.0.0.1:4000").body(body()).unwrap();
    assert_eq!(app.send(good).await.status, StatusCode::OK);
    let used = app.request("POST", "/api/open").header(header::CONTENT_TYPE, "application/json");
    let used = app.send(used.body(Body::from(r#"{"token":"x"}"#)).unwrap()).await;
    assert_eq!(used.code(), "link_invalid");
}

#[tokio::test]
async fn ids_paths_and_methods_that_do_not_exist_are_problems() {
    let app = TestApp::start().await;
    let nobody = "00000000-0000-4000-8000-000000000000";
    for (method, path, code) in [
        ("GET", "/api/auth/session/nope".to_owned(), "invalid_id"),
        ("GET", format!("/api/auth/session/{nobody}"), "not_found"),
        ("GET", format!("/api/auth/session/{nobody}/events"), "not_found"),
        ("POST", format!("/api/auth/session/{nobody}/cancel"), "not_found"),
        ("GET", format!("/api/vms/{nobody}"), "not_found"),
        ("GET", format!("/api/vms/{nobody}/logs/agent"), "not_found"),
        ("DELETE", format!("/api/vms/{nobody}"), "not_found"),
        ("DELETE", format!("/api/credentials/{nobody}"), "not_found"),
        ("GET", "/api/credentials?userId=../x".to_owned(), "invalid_user_id"),
        ("GET", "/api/nope".to_owned(), "not_found"),
        ("DELETE", "/api/providers".to_owned(), "method_not_allowed"),
        ("GET", format!("/api/vms/{nobody}/terminal"), "not_found"),
    ] {
        assert_eq!(app.call(method, &path, None).await.code(), code, "{method} {path}");
    }
}

#[tokio::test]
async fn the_one_request_too_many_is_told_when_to_come_back() {
    let app = TestApp::builder().setting("rate_limit_requests", "3").start().await;
    for _ in 0..3 {
        assert_eq!(app.call("GET", "/api/vms", None).await.status, StatusCode::OK);
    }
    let refused = app.call("GET", "/api/vms", None).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "rate_limited"));
    let wait: u64 = refused.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=900).contains(&wait), "{wait}");
    assert_eq!(refused.json()["retryAfterS"], Value::from(wait));
    assert_eq!(
        app.send(app.request("GET", "/health").body(Body::empty()).unwrap()).await.status,
        StatusCode::OK
    );
}
