use axum::{body::Body, http::StatusCode};
use polydev::api::{access::is_public, openapi_json};
use serde_json::Value;

use crate::app::TestApp;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/polydev.json");

#[test]
fn the_committed_document_is_current() {
    let committed = std::fs::read_to_string(COMMITTED).unwrap();
    assert!(committed == openapi_json(), "run `polydev openapi > openapi/polydev.json`");
}

#[tokio::test]
async fn every_documented_operation_but_the_public_ones_refuses_without_credentials() {
    let app = TestApp::start().await;
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let real =
                path.replace("{id}", "00000000-0000-4000-8000-000000000000").replace("{kind}", "agent");
            let request = app.request(&method.to_uppercase(), &real).body(Body::from("{}")).unwrap();
            let answer = app.send(request).await;
            if is_public(path) {
                assert!(["/health", "/api/open"].contains(&path.as_str()), "{path} is public");
            } else {
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (StatusCode::UNAUTHORIZED, "unauthorized"),
                    "{method} {path}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen >= 23, "only {seen} operations are documented");
}
