//! Version 2: a group has a controller's files only when every group above it passes that controller down, and one that
//! passes any down may hold no processes itself, unless it is the machine's root ("no internal processes" in cgroups(7)).

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use super::{layout::Controller, make_dir};

/// Where the processes go that are in the way: usually the manager itself and what started it.
const ASIDE: &str = "polydev-manager";
/// Looks at a group that is being emptied: its processes may start others meanwhile.
const ROUNDS: usize = 20;

/// Has `root` and then `parent` pass controllers down. What the kernel refuses is not there in the groups below; the
/// caller sees it with [`present`].
pub(super) fn pass_down(root: &Path, parent: &Path, controllers: &BTreeSet<Controller>) {
    for dir in [root, parent] {
        for controller in controllers {
            if let Err(error) = enable(dir, *controller) {
                tracing::warn!(
                    group = %dir.display(), controller = controller.name(), %error,
                    "a controller cannot be passed down"
                );
            }
        }
    }
}

/// The controllers that a group has.
pub(super) fn present(group: &Path) -> BTreeSet<Controller> {
    let text = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let names: BTreeSet<&str> = text.split_whitespace().collect();
    Controller::ALL.into_iter().filter(|controller| names.contains(controller.name())).collect()
}

fn enable(dir: &Path, controller: Controller) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let write = || fs::write(&file, format!("+{}", controller.name()));
    match write() {
        // Only the root of what was handed to this process, of a container for example, is ours to empty.
        Err(error) if error.kind() == ErrorKind::ResourceBusy && dir.join("cgroup.type").exists() => {
            step_aside(dir)?;
            write()
        }
        result => result,
    }
}

/// Moves a group's processes into one below it.
fn step_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.join(ASIDE);
    make_dir(&aside)?;
    for _ in 0..ROUNDS {
        let here = fs::read_to_string(dir.join("cgroup.procs"))?;
        if here.is_empty() {
            return Ok(());
        }
        for pid in here.lines() {
            match fs::write(aside.join("cgroup.procs"), pid) {
                Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
    Err(ErrorKind::ResourceBusy.into())
}
