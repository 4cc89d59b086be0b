//! The golden image's own kernel and programs in a cold-booted CLI VM: the layers of that kind of VM and the processor
//! that the guest sees must suit them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "support/leftovers.rs"]
mod leftovers;
#[allow(dead_code, reason = "shared with tests that need more of it")]
#[path = "support/machine.rs"]
mod machine;

use std::{collections::BTreeMap, fs, time::Instant};

use polydev_core::ids::UserId;
use serde::Deserialize;

use machine::{Kind, Machine, cli, identity, new_id, run};

/// `gemini` and `wrangler` are Node programs that need minutes to start when emulated: Node stands for them.
const PROGRAMS: [&str; 4] = ["node", "codex", "claude", "gh"];

#[derive(Deserialize)]
struct Image {
    kernel: Kernel,
    versions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Kernel {
    version: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_of_the_image_start_in_a_cli_vm_on_the_processor_that_the_guest_sees() {
    let Some(machine) = Machine::new(Kind::Qemu, 1) else { return };
    let image = fs::read(machine.config.image_dir.join("current/image.json")).unwrap();
    let image: Image = serde_json::from_slice(&image).unwrap();
    let host = machine.host().await;
    let (id, user): (_, UserId) = (new_id(), "tools@example".parse().unwrap());
    let began = Instant::now();
    let vm = host.create(cli(id, &user)).await.unwrap();
    println!("cold boot, identity taken: {} ms", began.elapsed().as_millis());

    // A task of its own, so that a failure still destroys the VM.
    let checked = {
        let vm = vm.clone();
        tokio::spawn(async move {
            assert_eq!(run(&vm, &["uname", "-r"]).await.trim(), image.kernel.version);
            assert_eq!(run(&vm, &["hostname"]).await.trim(), identity(id).hostname);
            for program in PROGRAMS {
                let began = Instant::now();
                let said = run(&vm, &[program, "--version"]).await;
                println!("{program} --version: {} ms", began.elapsed().as_millis());
                let version = &image.versions[program];
                assert!(said.contains(version.as_str()), "{program} {version} says {said:?}");
            }
        })
        .await
    };
    host.destroy(id).await.unwrap();
    drop((vm, host));
    machine.assert_nothing_left();
    checked.unwrap();
}
