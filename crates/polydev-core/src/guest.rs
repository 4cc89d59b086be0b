//! Fixed places, accounts and flags inside every VM, whatever driver runs it.
//!
//! The golden image creates the accounts, the agent creates the directories, the host never guesses either.

/// Runtime directory of the agent inside the guest (tmpfs).
pub const RUN_DIR: &str = "/run/polydev";
/// The agent's own executable inside the guest; the browser shim is a link to it.
pub const AGENT_PATH: &str = "/run/polydev/polydev-agent";
/// The desktop program, present in browser VMs only.
pub const DESKTOP_PATH: &str = "/run/polydev/polydev-desktop";
/// Directory with the browser shim under all its names; first in the login's `PATH`.
pub const SHIM_DIR: &str = "/run/polydev/shim";
/// What `$BROWSER` is set to.
pub const SHIM_PATH: &str = "/run/polydev/shim/xdg-open";
/// Unix socket on which the agent takes URLs from the shim.
pub const SHIM_SOCKET: &str = "/run/polydev/shim.sock";
/// Unix socket on which the agent listens for the host in the `container` driver (bind-mounted directory).
pub const CONTAINER_CHANNEL: &str = "/run/polydev/channel/agent.sock";
/// Name of the virtio-serial port that carries the guest channel under QEMU.
pub const VIRTIO_CHANNEL: &str = "polydev.agent";
/// vsock port on which the agent listens for the host under Firecracker.
pub const VSOCK_PORT: u32 = 5000;
/// What the kernel command line says where the channel is a vsock; a virtio-serial port otherwise.
pub const VSOCK_OPTION: &str = "polydev.channel=vsock";
/// What the kernel command line says, or a container's environment, where the VM has a network device.
pub const NETWORK_OPTION: &str = "polydev.network=tap";
/// The variable of a container that says so, with the value `tap`.
pub const NETWORK_VARIABLE: &str = "POLYDEV_NETWORK";
/// X display of the browser VM.
pub const DISPLAY: &str = ":1";
/// Flags of the guest's browser, between its profile's and the page. Nothing marks it as automated or opens it to a debugger.
pub const BROWSER_FLAGS: [&str; 15] = [
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-gpu-watchdog",
    "--disable-hang-monitor",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--hide-crash-restore-bubble",
    "--password-store=basic",
    "--start-maximized",
    "--window-position=0,0",
];
/// Unix socket of the guest's VNC server.
pub const VNC_SOCKET: &str = "/run/polydev/desktop/vnc.sock";
/// Unix socket on which the desktop program waits for the controller ([`crate::desktop`]).
pub const DESKTOP_SOCKET: &str = "/run/polydev/desktop/stream.sock";

/// The network device of every VM that has one. The same in all of them, so that a restored VM fits into any slot: each
/// is alone with its gateway, which answers whatever address it dials.
pub mod network {
    use std::net::Ipv4Addr;

    /// The device's name in the guest.
    pub const DEVICE: &str = "eth0";
    /// The guest's address.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
    /// Its gateway, name server and proxy.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
    /// Length of the prefix that both are in.
    pub const PREFIX: u8 = 30;
    /// The guest's hardware address (locally administered).
    pub const MAC: [u8; 6] = [0x02, 0xfc, 0x00, 0x00, 0x00, 0x05];
    /// The gateway's.
    pub const GATEWAY_MAC: [u8; 6] = [0x02, 0xfc, 0x00, 0x00, 0x00, 0x06];
    /// Longest packet.
    pub const MTU: u32 = 1500;
    /// Where the gateway takes HTTP CONNECT, and says what becomes of connections.
    pub const PROXY_PORT: u16 = 3128;
    /// Path of a request to [`PROXY_PORT`] before a host's name; the answer is a [`Traffic`] as JSON.
    pub const TRAFFIC_PATH: &str = "/traffic/";

    /// Path of a request to [`PROXY_PORT`] whose answer names each host that is refused from then on, one a line.
    pub const REFUSALS_PATH: &str = "/refusals";

    /// What went to and came from one host so far.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    pub struct Traffic {
        /// Connections that were made.
        pub connected: u64,
        /// Connections that were refused.
        pub refused: u64,
        /// Bytes that came back.
        pub bytes_back: u64,
    }
}

/// Account that runs the CLI and the terminal.
pub const CLI_USER: Account = Account { name: "dev", uid: 1000, gid: 1000, home: "/home/dev" };
/// Account that runs the X server, the window manager and Chromium; it cannot read the CLI user's home.
pub const BROWSER_USER: Account = Account { name: "browser", uid: 1001, gid: 1001, home: "/home/browser" };

/// `PATH` of everything the agent starts for a person.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// A user account that every golden image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: &'static str,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
    /// Home directory.
    pub home: &'static str,
}
