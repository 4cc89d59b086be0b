//! The drivers' contract once more, with the host in another process: a controller sees no difference.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/cases.rs"]
#[allow(dead_code, reason = "one of its cases is of the suite itself")]
mod cases;
#[path = "support/leftovers.rs"]
mod leftovers;
#[path = "support/remote_machine.rs"]
mod machine;
#[path = "support/program.rs"]
mod program;

use polydev_host::driver::fake::FakeDriver;

macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::machine::Kind::Fake(super::FakeDriver::default())).await;
            })*
        }
        mod container {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::machine::Kind::Container).await;
            })*
        }
    };
}

contract!(
    a_created_vm_answers_has_its_identity_and_leaves_nothing_but_logs,
    a_vm_survives_its_manager_and_is_adopted_by_the_next,
    a_vm_that_crashes_is_noticed_and_reclaimed,
    a_cli_disk_outlives_its_vm_and_has_one_user_at_a_time,
    a_guest_that_dies_at_start_is_reported_with_its_last_words,
    more_vms_than_slots_are_refused_and_slots_come_back,
);
