//! VMs that continue from one snapshot share nothing that has to be one VM's own.
//!
//! Everything is compared as it shows: what programs read, what leaves on the wire. The control is what the template
//! itself holds, which is equal in all its clones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

#[path = "support/client_hello.rs"]
mod client_hello;
#[path = "support/leftovers.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod leftovers;
#[path = "support/machine.rs"]
#[allow(dead_code, reason = "shared with the contract suite")]
mod machine;
#[path = "support/own.rs"]
mod own;
#[path = "support/stillness.rs"]
mod stillness;

mod qemu {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clones_of_one_template_share_nothing_that_must_be_one_vms_own() {
        super::own::clones_of_one_template_share_nothing_that_must_be_one_vms_own().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_vm_that_lay_down_runs_nothing_before_its_clock_is_set_and_stays_what_it_is() {
        super::stillness::a_vm_that_lay_down_runs_nothing_before_its_clock_is_set_and_stays_what_it_is()
            .await;
    }
}

mod container {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_vms_share_nothing_that_must_be_one_vms_own() {
        super::own::two_containers_share_nothing_that_must_be_one_vms_own().await;
    }
}
