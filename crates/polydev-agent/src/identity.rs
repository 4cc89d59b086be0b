//! Makes the VM one of its own: after start, and again after a restore. From [`lay_down`] to [`take`] nothing but the
//! agent runs.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    rc::Rc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use polydev_core::{
    guest::{CLI_USER, RUN_DIR, network::GATEWAY},
    wire::{ErrorCode, Identity, Refusal, Reply},
};
use rustix::time::{ClockId, Timespec, clock_settime};
use zeroize::Zeroizing;

use crate::{
    Surroundings,
    agent::Agent,
    browser, catcher, clone,
    control::{refuse, refuse_os},
    freezer, network,
};

/// Least and most bytes of entropy.
const ENTROPY: std::ops::RangeInclusive<usize> = 32..=512;
/// How long a machine that is not saved after all stands still; many times what saving and waking take.
const UNASKED: Duration = Duration::from_secs(60);
const MACHINE_ID: &str = "/etc/machine-id";
/// Most variables, and most bytes of one.
const ENV_MAX: (usize, usize) = (128, 32 << 10);

// From linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

pub(crate) async fn take(agent: &Rc<Agent>, identity: Identity) -> Result<Reply, Refusal> {
    let bad = |what: &str| refuse(ErrorCode::BadRequest, what);
    if !is_hostname(&identity.hostname) {
        return Err(bad("the host name is malformed"));
    }
    if identity.machine_id.len() != 32
        || !identity.machine_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(bad("the machine id is not 32 lower case hex digits"));
    }
    let entropy =
        Zeroizing::new(STANDARD.decode(&identity.entropy).map_err(|_| bad("the entropy is not base64"))?);
    if !ENTROPY.contains(&entropy.len()) {
        return Err(bad("the entropy is too short or too long"));
    }
    let sound = |(name, value): (&String, &String)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') && value.len() <= ENV_MAX.1
    };
    if identity.env.len() > ENV_MAX.0 || !identity.env.iter().all(sound) {
        return Err(bad("the environment is malformed or too large"));
    }

    // First the entropy: nothing may draw from a pool that a clone shares.
    let best_effort = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            agent.log.note("identity", format_args!("{what}: {error}"));
        }
    };
    let stirred = stir(&entropy);
    let restored = freezer::frozen();
    if agent.surroundings == Surroundings::Vm {
        if restored {
            stirred.map_err(|error| refuse_os("renew the random pool", &error))?;
        } else {
            best_effort("entropy", stirred);
        }
        let seconds =
            i64::try_from(identity.unix_time_ms / 1000).map_err(|_| bad("the time is out of range"))?;
        let nanos = i64::try_from(identity.unix_time_ms % 1000).unwrap_or(0) * 1_000_000;
        clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanos })
            .map_err(|error| refuse_os("set the clock", &error.into()))?;
    }
    // A machine that slept keeps what it is; one that goes on from a template does not.
    let former = fs::read_to_string(MACHINE_ID).unwrap_or_default();
    if restored && former.trim() != identity.machine_id {
        clone::end_holders(&agent.log).map_err(|error| refuse_os("end what the template ran", &error))?;
        clone::renew_boot_id(&agent.log).map_err(|error| refuse_os("renew the boot id", &error))?;
    }
    let named = rustix::system::sethostname(identity.hostname.as_bytes()).map_err(io::Error::from);
    if agent.surroundings == Surroundings::Vm
        || fs::read_to_string("/proc/sys/kernel/hostname").ok().as_deref().map(str::trim)
            != Some(&identity.hostname)
    {
        best_effort("host name", named);
    }
    best_effort("profile's lock", browser::rename_lock(&identity.hostname));
    let name = &identity.hostname;
    // The gateway is another process on a busy machine; and to musl the timeout is that of all attempts together.
    let (resolver, patience) = if network::is_there(agent.surroundings) {
        (GATEWAY, "timeout:10 attempts:4")
    } else {
        (Ipv4Addr::new(127, 0, 0, 53), "timeout:2 attempts:2")
    };
    for (path, content) in [
        ("/etc/hostname", format!("{name}\n")),
        (MACHINE_ID, format!("{}\n", identity.machine_id)),
        ("/etc/hosts", format!("127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n")),
        ("/etc/resolv.conf", format!("nameserver {resolver}\noptions {patience}\n")),
    ] {
        replace(Path::new(path), &content).map_err(|error| refuse_os(path, &error))?;
    }
    *agent.identity_env.borrow_mut() = identity.env;
    catcher::set_allowed(agent, identity.egress)
        .await
        .map_err(|error| refuse_os("start the way out", &error))?;
    agent.identities.set(agent.identities.get() + 1);
    freezer::thaw().map_err(|error| refuse_os("let the programs go on", &error))?;
    agent
        .log
        .note("identity", format_args!("now {name}, egress {}", if identity.egress { "on" } else { "off" }));
    Ok(Reply::Done)
}

/// Prepares for a snapshot: writes everything out and lets nothing run until an identity comes.
pub(crate) async fn lay_down(agent: &Rc<Agent>) -> Result<Reply, Refusal> {
    if agent.surroundings == Surroundings::Vm {
        // A browser that somebody uses is not for a template: its pages stay.
        if !agent.desktop.page.is_wanted()
            && let Err(error) = clone::end_renderers()
        {
            agent.log.note("identity", format_args!("renderers: {error}"));
        }
        if let Err(error) = freezer::freeze().await {
            let thawed = freezer::thaw();
            agent.log.note("identity", format_args!("not frozen: {error}; thawed: {thawed:?}"));
            return Err(refuse_os("freeze the programs", &error));
        }
        if agent.identities.get() > 0 {
            tokio::task::spawn_local(get_up_unasked(agent.clone()));
        }
    }
    rustix::fs::sync();
    Ok(Reply::Done)
}

/// A machine that somebody uses goes on by itself when its host changed its mind, or died, before it was saved. Its clock
/// stands still while it is saved. A template never goes on as what it is.
async fn get_up_unasked(agent: Rc<Agent>) {
    let identities = agent.identities.get();
    tokio::time::sleep(UNASKED).await;
    if agent.identities.get() == identities && freezer::frozen() {
        let thawed = freezer::thaw();
        agent.log.note("identity", format_args!("no host came; everything goes on: {thawed:?}"));
    }
}

/// Directories that exist whatever the golden image holds.
pub(crate) fn prepare_places() -> io::Result<()> {
    fs::create_dir_all(RUN_DIR)?;
    if !Path::new(CLI_USER.home).exists() {
        fs::create_dir_all(CLI_USER.home)?;
        std::os::unix::fs::chown(CLI_USER.home, Some(CLI_USER.uid), Some(CLI_USER.gid))?;
    }
    // The person's files and the browser's are nobody else's.
    fs::set_permissions(CLI_USER.home, std::os::unix::fs::PermissionsExt::from_mode(0o700))
}

fn is_hostname(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(sound)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Writes a file that may be a link into nowhere or a bind mount (then it is written in place).
fn replace(path: &Path, content: &str) -> io::Result<()> {
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    fs::write(path, content)
}

/// Credits the bytes to the kernel's pool and makes it draw a new key at once.
fn stir(entropy: &[u8]) -> io::Result<()> {
    let random = fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open("/dev/random")?;
    let size = u32::try_from(entropy.len()).map_err(io::Error::other)?;
    // struct rand_pool_info: entropy in bits, size in bytes, the bytes.
    let mut request = Zeroizing::new(Vec::with_capacity(8 + entropy.len()));
    request.extend_from_slice(&(size * 8).to_ne_bytes());
    request.extend_from_slice(&size.to_ne_bytes());
    request.extend_from_slice(entropy);
    // SAFETY: the pointer is to a live rand_pool_info of the size it announces; the second call takes no argument.
    unsafe {
        if libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, request.as_ptr()) == -1
            || libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_single_lower_case_labels() {
        for good in ["polydev-1a2b3c4d", "a", "0"] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "A", "a b", "a\n127.0.0.1 evil", &"x".repeat(64)] {
            assert!(!is_hostname(bad), "{bad:?}");
        }
    }
}
