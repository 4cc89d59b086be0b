//! What every driver must hold. The same cases run against the fake (always), `container` and `qemu` (where root, an
//! image and the guest programs are there).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/cases.rs"]
mod cases;
#[path = "support/full.rs"]
mod full;
#[path = "support/leftovers.rs"]
mod leftovers;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/picture.rs"]
mod picture;
#[path = "support/program.rs"]
mod program;
#[path = "support/sleep.rs"]
mod sleep;
#[path = "support/snapshot.rs"]
mod snapshot;
#[path = "support/warm.rs"]
mod warm;

use polydev_host::driver::fake::FakeDriver;

macro_rules! contract {
    ($($case:ident),* $(,)?; asleep: $($sleeping:ident),* $(,)?; warm: $($warm:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::machine::Kind::Fake(super::FakeDriver::default())).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sleeping() {
                super::sleep::$sleeping(super::machine::Kind::Fake(super::FakeDriver::default())).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $warm() {
                super::warm::$warm(super::machine::Kind::Fake(super::FakeDriver::default())).await;
            })*
        }
        mod container {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::machine::Kind::Container).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sleeping() {
                super::sleep::$sleeping(super::machine::Kind::Container).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $warm() {
                super::warm::$warm(super::machine::Kind::Container).await;
            })*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_workspace_that_fills_the_disk_stands_still_and_goes_on_when_there_is_room() {
                super::full::a_workspace_that_fills_the_disk_stands_still_and_goes_on_when_there_is_room().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn vms_are_removed_from_a_disk_that_is_full() {
                super::full::vms_are_removed_from_a_disk_that_is_full().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_a_workspace_deletes_is_given_back_to_the_hosts_disk() {
                super::full::what_a_workspace_deletes_is_given_back_to_the_hosts_disk(super::machine::Kind::Container).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_vm_takes_nothing_over_from_the_service_that_starts_it() {
                super::cases::a_vm_takes_nothing_over_from_the_service_that_starts_it(super::machine::Kind::Container).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_network_that_lost_its_name_is_not_replaced_under_a_living_vm() {
                super::sleep::a_network_that_lost_its_name_is_not_replaced_under_a_living_vm(super::machine::Kind::Container).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_test_that_fails_leaves_no_vm_to_the_next() {
                super::cases::a_test_that_fails_leaves_no_vm_to_the_next(super::machine::Kind::Container).await;
            }
        }
        mod qemu {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::cases::$case(super::machine::Kind::Qemu).await;
            })*
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sleeping() {
                super::sleep::$sleeping(super::machine::Kind::Qemu).await;
            })*

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_a_workspace_deletes_is_given_back_to_the_hosts_disk() {
                super::full::what_a_workspace_deletes_is_given_back_to_the_hosts_disk(super::machine::Kind::Qemu).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_vm_takes_nothing_over_from_the_service_that_starts_it() {
                super::cases::a_vm_takes_nothing_over_from_the_service_that_starts_it(super::machine::Kind::Qemu).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_network_that_lost_its_name_is_not_replaced_under_a_living_vm() {
                super::sleep::a_network_that_lost_its_name_is_not_replaced_under_a_living_vm(super::machine::Kind::Qemu).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn restored_vms_wait_in_the_pool() {
                super::warm::restored_vms_wait_in_the_pool().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_vm_that_cannot_be_saved_runs_on() {
                super::sleep::a_vm_that_cannot_be_saved_runs_on(super::machine::Kind::Qemu).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn vms_restored_from_one_template_answer_fast_and_are_each_one_of_its_own() {
                super::snapshot::vms_restored_from_one_template_answer_fast_and_are_each_one_of_its_own().await;
            }
        }
    };
}

contract!(
    a_created_vm_answers_has_its_identity_and_leaves_nothing_but_logs,
    a_vm_survives_its_manager_and_is_adopted_by_the_next,
    a_vm_that_crashes_is_noticed_and_reclaimed,
    a_cli_disk_outlives_its_vm_and_has_one_user_at_a_time,
    a_guest_that_dies_at_start_is_reported_with_its_last_words,
    more_vms_than_slots_are_refused_and_slots_come_back;
    asleep:
    a_vm_that_slept_goes_on_with_its_shell_and_scrollback,
    a_vm_that_sleeps_survives_its_manager_and_can_be_destroyed,
    memory_that_is_lost_is_reported_and_the_vm_starts_from_its_disk,
    only_workspaces_sleep;
    warm:
    a_warm_vm_is_painted_and_takes_its_name_when_it_is_drawn,
    warm_vms_survive_their_manager_and_give_way_to_wanted_ones,
    a_warm_vm_that_dies_is_replaced_and_never_handed_out,
    a_vm_that_finds_no_room_is_refused_before_anything_is_made,
);
