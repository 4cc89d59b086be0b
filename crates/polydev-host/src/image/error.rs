//! What can go wrong with images.

use std::path::{Path, PathBuf};

use super::modules::ModuleError;

/// Failure of an image operation. The text is fit for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The recipe does not parse, or says something impossible; every fault is listed.
    #[error("recipe {} has {} fault(s):\n  {}", .path.display(), .faults.len(), .faults.join("\n  "))]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// One sentence per fault.
        faults: Vec<String>,
    },
    /// The recipe says of itself that it cannot be built.
    #[error("recipe {recipe} cannot be built: {reason}")]
    NotBuildable {
        /// Name of the recipe.
        recipe: String,
        /// What the recipe says.
        reason: String,
    },
    /// A program of the build machine is missing.
    #[error("{program} is not installed on this machine (Debian package {package})")]
    MissingProgram {
        /// Name looked up in `PATH`.
        program: &'static str,
        /// Package that carries it.
        package: &'static str,
    },
    /// Building mounts filesystems and owns files as root.
    #[error("building or checking an image needs root")]
    NotRoot,
    /// Another build, or a clean-up, is at work in this directory.
    #[error("another image build or clean-up is at work ({})", .0.display())]
    Locked(PathBuf),
    /// The disk is too full to start.
    #[error("not enough free space at {}: {free_mib} MiB free, {need_mib} MiB needed", .path.display())]
    NoSpace {
        /// Directory measured.
        path: PathBuf,
        /// Free now.
        free_mib: u64,
        /// Asked for by the recipe.
        need_mib: u64,
    },
    /// No package source for the recipe's suite.
    #[error("no package source: {0}")]
    Mirror(String),
    /// A program of the build failed.
    #[error("{what} failed ({status})\n{tail}\nwhole output: {}", .log.display())]
    Command {
        /// The step.
        what: String,
        /// Exit status or signal.
        status: String,
        /// Last lines of its output.
        tail: String,
        /// Log file of the build.
        log: PathBuf,
    },
    /// Something fetched is not what the recipe pins.
    #[error("{what}: expected {expected}, found {found}")]
    Integrity {
        /// What was compared.
        what: String,
        /// What the recipe pins.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The built tree breaks a rule of the image.
    #[error("{}: {rule}", .path.display())]
    Tree {
        /// Offending file.
        path: PathBuf,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// The kernel's modules cannot be put in order.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The kernel image is not of a kind the builder can unpack.
    #[error("kernel image: {0}")]
    Kernel(&'static str),
    /// `image.json` or `layer.json` is missing, damaged or points at files that are not there.
    #[error("image at {}: {reason}", .path.display())]
    Manifest {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No image has been built yet.
    #[error("no golden image in {}; `polydev image build` makes one", .0.display())]
    NoImage(PathBuf),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// An operation on a file failed.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

impl ImageError {
    pub(crate) fn io(what: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), source: source.into() }
    }
}

/// Puts verb and path to an I/O error.
pub(crate) trait IoContext<T> {
    fn or_io(self, what: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for Result<T, E> {
    fn or_io(self, what: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::io(what, path, source))
    }
}
