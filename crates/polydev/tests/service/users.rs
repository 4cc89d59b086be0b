//! Users: the list, and the removal of one.

use axum::http::StatusCode;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{app::TestApp, egress::put};

#[tokio::test]
async fn a_removed_user_leaves_nothing_but_the_audit_log_and_others_keep_theirs() {
    let app = TestApp::builder().setting("proxy_ports", "27200-27209").start().await;
    for user in ["ann", "bob"] {
        let id = app.begin(user).await;
        let (vm, agent) = app.to_the_person(id).await;
        app.finish_login(vm, &agent, "{\"token\":\"FAKE-token\"}").await;
        assert_eq!(app.closed(id).await["state"], "succeeded");
        put(&app, user, json!({ "policy": "direct" })).await;
    }
    let users = app.call("GET", "/api/users", None).await.json()["users"].clone();
    assert_eq!(users.as_array().unwrap().len(), 2);
    for (user, name) in users.as_array().unwrap().iter().zip(["ann", "bob"]) {
        assert_eq!(
            (&user["id"], &user["egress"], &user["credentials"], &user["vms"]),
            (&json!(name), &json!("direct"), &json!(1), &json!(1))
        );
        assert!(user["proxyPort"].is_u64());
    }
    // Named as the host names them: nobody else may learn a user's name from a path.
    let disk = |user: &str| {
        let digest = Sha256::digest(user);
        let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        app.host_path("users").join(name)
    };
    for user in ["ann", "bob"] {
        std::fs::create_dir_all(disk(user)).unwrap();
    }
    let under_way = app.begin("ann").await;
    let (browser_vm, _) = app.to_the_person(under_way).await;

    let answer = app.call("DELETE", "/api/users/ann", None).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({ "success": true, "existed": true })));
    assert!(app.driver.agent(browser_vm).is_none(), "the sign-in's VM is still there");
    let left = app.call("GET", "/api/users", None).await.json()["users"].clone();
    assert_eq!(left, json!([users[1]]));
    let vms: Vec<_> = app.vms().await.iter().map(|vm| vm["userId"].clone()).collect();
    assert_eq!(vms, ["bob"]);
    let credentials = app.call("GET", "/api/credentials", None).await.json()["credentials"].clone();
    assert_eq!((credentials.as_array().unwrap().len(), &credentials[0]["userId"]), (1, &json!("bob")));
    assert!(!disk("ann").exists() && disk("bob").exists());
    assert_eq!(
        app.call("GET", &format!("/api/auth/session/{under_way}"), None).await.status,
        StatusCode::NOT_FOUND
    );
    let egress = app.call("GET", "/api/users/ann/egress", None).await.json();
    assert_eq!((egress["policy"].as_str(), egress["effective"].as_str()), (Some("default"), Some("deny")));
    let audit = app.app.store.audit_entries(100).await.unwrap();
    let removals = || audit.iter().filter(|entry| entry.action == "user.removed");
    assert_eq!(removals().map(|entry| entry.user.as_deref()).collect::<Vec<_>>(), [Some("ann")]);

    let again = app.call("DELETE", "/api/users/ann", None).await;
    assert_eq!((again.status, again.json()), (StatusCode::OK, json!({ "success": true, "existed": false })));
    let id = app.begin("ann").await;
    app.to_the_person(id).await;
}
