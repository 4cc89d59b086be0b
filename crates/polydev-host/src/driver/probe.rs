//! Which drivers work on this machine, found by running something with each.

mod remembered;

use std::{path::Path, sync::Arc};

use super::{
    Driver, Places,
    container::{self, ContainerDriver, Programs},
    firecracker::{self, FirecrackerDriver},
    qemu::{self, Accel, QemuDriver},
};
use crate::{
    config::{DriverChoice, HostConfig, NetworkChoice, NetworkMode},
    error::HostError,
    golden::GoldenImage,
    net::{self, LinkKind},
};

/// What a probe found, for `polydev doctor`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverProbe {
    /// `firecracker`, `qemu-kvm`, `container` or `qemu-tcg`; in the order in which `auto` prefers them.
    pub driver: String,
    /// Something was run with it, and that worked.
    pub usable: bool,
    /// What was found, in words for a person.
    pub found: String,
}

/// Every driver there is, usable or not.
pub(crate) async fn all(config: &HostConfig) -> Vec<DriverProbe> {
    let mut probes = Vec::new();
    for candidate in ORDER {
        let (usable, found) = match try_out(candidate, config, true).await {
            Ok(found) => (true, found),
            Err(found) => (false, found),
        };
        probes.push(DriverProbe { driver: candidate.name().to_owned(), usable, found });
    }
    probes
}

/// The one of these that new VMs would use.
#[must_use]
pub fn chosen(choice: DriverChoice, probes: &[DriverProbe]) -> Option<&DriverProbe> {
    candidates(choice)
        .iter()
        .find_map(|candidate| probes.iter().find(|probe| probe.usable && probe.driver == candidate.name()))
}

/// What a choice allows, in the order in which it is tried.
const fn candidates(choice: DriverChoice) -> &'static [Candidate] {
    match choice {
        DriverChoice::Auto => &ORDER,
        DriverChoice::Firecracker => &[Candidate::Firecracker],
        DriverChoice::Container => &[Candidate::Container],
        DriverChoice::Qemu => &[Candidate::QemuKvm, Candidate::QemuTcg],
        #[cfg(feature = "chaos")]
        DriverChoice::FirecrackerToy | DriverChoice::Fake => &[],
    }
}

/// What a host's VMs are run with.
pub(crate) struct Chosen {
    /// The one that new VMs use, then those that may still have older VMs.
    pub(crate) drivers: Vec<Arc<dyn Driver>>,
    /// Of new VMs.
    pub(crate) network: NetworkMode,
}

/// Tries out what the configuration leaves open.
pub(crate) async fn choose(
    config: &HostConfig,
    places: &Places,
    image: &GoldenImage,
) -> Result<Chosen, HostError> {
    let mut reasons = Vec::new();
    let mut chosen = None;
    for candidate in candidates(config.driver) {
        match try_out(*candidate, config, false).await {
            Ok(found) => {
                tracing::info!(driver = candidate.name(), found, "driver chosen");
                chosen = Some(*candidate);
                break;
            }
            Err(reason) => reasons.push(format!("{}: {reason}", candidate.name())),
        }
    }
    let driver = match config.driver {
        DriverChoice::Auto => "auto",
        DriverChoice::Firecracker => firecracker::NAME,
        DriverChoice::Container => container::NAME,
        DriverChoice::Qemu => qemu::NAME,
        #[cfg(feature = "chaos")]
        DriverChoice::FirecrackerToy => firecracker::NAME,
        #[cfg(feature = "chaos")]
        DriverChoice::Fake => "fake",
    };
    let unusable = || HostError::DriverUnusable { driver: driver.to_owned(), reason: reasons.join("; ") };
    let chosen = chosen.ok_or_else(unusable)?;
    let accel = if chosen == Candidate::QemuKvm { Accel::Kvm } else { Accel::Tcg };
    let network = network(config.network, chosen).await;
    let programs = Programs {
        agent: config.agent_path.clone(),
        desktop: config.desktop_path.clone(),
        overlay: config.overlay_dir.clone(),
    };
    let (place, image) = (|| places.clone(), || image.clone());
    let container = Arc::new(ContainerDriver::new(place(), image(), programs.clone()));
    let qemu = Arc::new(QemuDriver::new(place(), image(), programs.clone(), accel, network));
    let firecracker = Arc::new(FirecrackerDriver::new(place(), image(), programs, config, network));
    let mut drivers: Vec<Arc<dyn Driver>> = vec![container, qemu, firecracker];
    let first = match chosen {
        Candidate::Container => 0,
        Candidate::QemuKvm | Candidate::QemuTcg => 1,
        Candidate::Firecracker => 2,
    };
    drivers.swap(0, first);
    Ok(Chosen { drivers, network })
}

/// The network of new VMs: devices if they are asked for or can be made.
async fn network(choice: NetworkChoice, driver: Candidate) -> NetworkMode {
    match choice {
        NetworkChoice::Channel => NetworkMode::Channel,
        NetworkChoice::Tap => NetworkMode::Tap,
        NetworkChoice::Auto => match net::try_out(driver.link_kind()).await {
            Ok(()) => {
                tracing::info!(network = "tap", "network chosen");
                NetworkMode::Tap
            }
            Err(error) => {
                tracing::warn!(network = "channel", %error, "network chosen: devices cannot be made");
                NetworkMode::Channel
            }
        },
    }
}

/// Something that may be usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Candidate {
    Firecracker,
    QemuKvm,
    Container,
    QemuTcg,
}

/// The order in which `auto` tries.
const ORDER: [Candidate; 4] =
    [Candidate::Firecracker, Candidate::QemuKvm, Candidate::Container, Candidate::QemuTcg];

impl Candidate {
    const fn name(self) -> &'static str {
        match self {
            Self::Firecracker => firecracker::NAME,
            Self::QemuKvm => "qemu-kvm",
            Self::Container => container::NAME,
            Self::QemuTcg => "qemu-tcg",
        }
    }

    const fn link_kind(self) -> LinkKind {
        match self {
            Self::Container => LinkKind::Veth,
            Self::Firecracker | Self::QemuKvm | Self::QemuTcg => LinkKind::Tap,
        }
    }
}

/// Runs something with a candidate. What was found of KVM is remembered, unless it is to be found out `afresh`.
async fn try_out(candidate: Candidate, config: &HostConfig, afresh: bool) -> Result<String, String> {
    let file = config.run_dir.join(format!("found-{}.json", candidate.name()));
    match candidate {
        Candidate::Firecracker => {
            let program = config.firecracker.program.as_path();
            let probe = firecracker::probe::firecracker(&config.firecracker, &config.run_dir);
            remembered::or_ask(&file, program, afresh, probe).await
        }
        Candidate::QemuKvm => {
            let probe = qemu::probe::kvm(&config.run_dir);
            remembered::or_ask(&file, Path::new("/usr/bin").join(qemu::QEMU).as_path(), afresh, probe).await
        }
        Candidate::Container => ContainerDriver::probe(&config.run_dir).await,
        Candidate::QemuTcg => qemu::probe::tcg(&config.run_dir).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    #[test]
    fn without_the_rights_for_a_device_traffic_takes_the_guest_channel_unless_one_is_asked_for() {
        let chosen = std::thread::spawn(|| {
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let auto = network(NetworkChoice::Auto, Candidate::Container).await;
                [auto, network(NetworkChoice::Tap, Candidate::Container).await]
            })
        });
        assert_eq!(chosen.join().unwrap(), [NetworkMode::Channel, NetworkMode::Tap]);
    }

    #[test]
    fn new_vms_use_the_first_driver_that_works_of_those_that_the_choice_allows() {
        let probes = |usable: &[&str]| {
            let probe = |candidate: &Candidate| DriverProbe {
                driver: candidate.name().to_owned(),
                usable: usable.contains(&candidate.name()),
                found: String::new(),
            };
            ORDER.iter().map(probe).collect::<Vec<_>>()
        };
        let name = |choice, usable: &[&str]| {
            let probes = probes(usable);
            chosen(choice, &probes).map(|probe| probe.driver.clone())
        };
        let some = |driver: &str| Some(driver.to_owned());
        assert_eq!(name(DriverChoice::Auto, &["container", "qemu-tcg"]), some("container"));
        assert_eq!(name(DriverChoice::Auto, &["container", "firecracker"]), some("firecracker"));
        assert_eq!(name(DriverChoice::Qemu, &["container", "qemu-tcg"]), some("qemu-tcg"));
        assert_eq!(name(DriverChoice::Firecracker, &["container", "qemu-tcg"]), None);
        assert_eq!(name(DriverChoice::Auto, &[]), None);
    }
}
