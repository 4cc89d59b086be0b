//! A workspace that stands still because its host's disk is nearly full.

use std::{fs, io::Write as _, net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use polydev_core::{ids::VmId, wire::Request as Ask};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    app::{TestApp, until},
    sockets::{Socket, connect, listen},
};

const DEADLINE: Duration = Duration::from_secs(60);
const USER: &str = "alice";

/// A service that watches the disk, where it listens, and a workspace in it.
async fn workspace() -> (TestApp, SocketAddr, String) {
    let app = TestApp::builder().setting("disk_reserve_mib", "1").start().await;
    let address = listen(&app).await;
    let vm = app.call("POST", "/api/vms", Some(json!({ "userId": USER }))).await.json();
    (app, address, vm["id"].as_str().unwrap().to_owned())
}

async fn state(app: &TestApp, id: &str) -> Value {
    app.call("GET", &format!("/api/vms/{id}"), None).await.json()["state"].take()
}

/// Has the disk be full and the workspace grow until it stands still.
async fn fill_the_disk(app: &TestApp, id: &str) {
    let digest = Sha256::digest(USER);
    let name: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = app.host_path("users").join(name);
    fs::create_dir_all(&dir).unwrap();
    let mut disk = fs::File::create(dir.join("disk.ext4")).unwrap();
    app.driver.set_disk_free(Some(0));
    until("it stands still", async || {
        disk.write_all(&[1; 64 << 10]).unwrap();
        (state(app, id).await == "paused").then_some(())
    })
    .await;
}

/// The next message that is no ping.
async fn next(socket: &mut Socket) -> Message {
    let hearing = async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Ping(_) => {}
                message => return message,
            }
        }
    };
    timeout(DEADLINE, hearing).await.expect("something comes")
}

fn told(state: &str) -> Message {
    Message::Text(format!(r#"{{"type":"state","state":"{state}"}}"#).into())
}

fn bytes(text: &str) -> Message {
    Message::Binary(text.as_bytes().to_vec().into())
}

#[tokio::test]
async fn terminals_of_a_workspace_that_stands_still_say_so_and_that_it_goes_on() {
    let (app, address, id) = workspace().await;
    let id = id.as_str();
    let path = format!("/api/vms/{id}/terminal");
    let mut open = connect(&app, address, &path, &[]).await.unwrap();
    open.send(bytes("before")).await.unwrap();
    assert_eq!(next(&mut open).await, bytes("before"), "who is not paused is told nothing");

    fill_the_disk(&app, id).await;
    assert_eq!(next(&mut open).await, told("paused"));
    assert_eq!(app.vms().await[0]["state"], "paused");
    open.send(bytes("meanwhile")).await.unwrap();
    let mut late = connect(&app, address, &path, &[]).await.unwrap();
    assert_eq!(next(&mut late).await, told("paused"), "without an answer of the guest");
    late.send(Message::Text(r#"{"type":"resize","cols":120,"rows":40}"#.into())).await.unwrap();
    let mut gone = connect(&app, address, &path, &[]).await.unwrap();
    assert_eq!(next(&mut gone).await, told("paused"));
    gone.close(None).await.unwrap();
    while let Some(Ok(_)) = gone.next().await {}

    app.driver.set_disk_free(None);
    // A guest that goes on may answer before that is on record.
    let heard = [next(&mut open).await, next(&mut open).await];
    assert!(heard.contains(&told("running")) && heard.contains(&bytes("meanwhile")), "{heard:?}");
    assert_eq!(next(&mut late).await, told("running"));
    late.send(bytes("after")).await.unwrap();
    assert_eq!(next(&mut late).await, bytes("after"));
    assert_eq!(state(&app, id).await, "running");
    let agent = app.driver.agent(id.parse::<VmId>().unwrap()).unwrap();
    let sizes: Vec<_> = agent
        .requests()
        .into_iter()
        .filter_map(|ask| match ask {
            Ask::OpenPty { cols, rows, .. } => Some((cols, rows)),
            _ => None,
        })
        .collect();
    assert_eq!(
        sizes,
        [(80, 24), (120, 40)],
        "as large as its window is by then; none for the page that left"
    );
}

#[tokio::test]
async fn a_workspace_that_stands_still_can_be_removed() {
    let (app, address, id) = workspace().await;
    let id = id.as_str();
    fill_the_disk(&app, id).await;
    let mut open = connect(&app, address, &format!("/api/vms/{id}/terminal"), &[]).await.unwrap();
    assert_eq!(next(&mut open).await, told("paused"));
    let removed = app.call("DELETE", &format!("/api/vms/{id}"), None).await;
    assert_eq!(removed.json()["success"], true, "{}", removed.text);
    assert!(app.app.machines.paused().borrow().is_empty());
    let ends = async { while !matches!(next(&mut open).await, Message::Close(_)) {} };
    timeout(DEADLINE, ends).await.expect("its terminal ends");
}
