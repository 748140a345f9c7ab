//! Landlock: what the process may open and remove, and that it connects to nothing and signals
//! nobody.
//!
//! What is open already stays usable in every way. Rights are those of files, found by the path at
//! start: a file that is renamed later keeps them, one that takes its place has none.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::error::Error;
use super::state::State;

/// Access to a file that the process keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Open an image again; extend it, and discard on it, if it is writable.
    Image {
        /// The image.
        path: PathBuf,
        /// Whether it is opened for writing.
        writable: bool,
    },
    /// Write a recording.
    Recording(PathBuf),
    /// Remove the sockets in a folder, and with them whatever else this user may remove there and
    /// below: Landlock has no right for one name.
    SocketFolder(PathBuf),
    /// Open and make images, recordings and records in a folder and below, and read the limits of the
    /// devices that they lie on: for hot-plug.
    ImageFolder(PathBuf),
}

/// Limits of block devices; /sys/dev/block has links to it.
const DEVICES: &str = "/sys/devices";

/// The newest that this crate knows of. A kernel enforces what it knows of it.
const NEWEST: ABI = ABI::V10;

/// The oldest kernel that refuses to open, cut short and remove other files.
const LEAST: i32 = 3;

/// What a kernel lacks, by the ABI that brought it (landlock(7), "VERSIONS"). Without these,
/// seccomp still refuses new sockets.
const BROUGHT_BY: [(i32, &str); 5] = [
    (4, "TCP ports"),
    (5, "ioctls of other devices"),
    (6, "abstract sockets and signals"),
    (9, "sockets with a path"),
    (10, "UDP ports"),
];

/// A ruleset, ready to be enforced.
#[derive(Debug)]
pub(super) struct Rules(Result<RulesetCreated, String>);

impl Rules {
    /// # Errors
    /// A path that cannot be found.
    pub(super) fn new(grants: &[Grant]) -> Result<Self, Error> {
        let mut rules = Vec::new();
        for grant in grants {
            let (path, access) = grant.access();
            rules.push(PathBeneath::new(path_fd(path)?, access));
            if matches!(grant, Grant::ImageFolder(_)) {
                // Without sysfs there are no limits to be read.
                rules.extend(PathFd::new(DEVICES).map(|folder| PathBeneath::new(folder, AccessFs::ReadFile)));
            }
        }
        // What this kernel does not know of is left out: `restrict` tells.
        let made = || -> Result<RulesetCreated, RulesetError> {
            Ruleset::default()
                .handle_access(AccessFs::from_all(NEWEST))?
                .handle_access(AccessNet::from_all(NEWEST))?
                .scope(Scope::from_all(NEWEST))?
                .create()?
                .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))
        };
        Ok(Self(made().map_err(|error| error.to_string())))
    }

    /// Restricts this thread.
    pub(super) fn restrict(self) -> State {
        match self.0.and_then(|rules| rules.restrict_self().map_err(|error| error.to_string())) {
            Ok(status) => state(&status),
            Err(cause) => State::Off { cause, remedy: "permit the calls of Landlock to this process" },
        }
    }
}

fn state(status: &RestrictionStatus) -> State {
    let off = |cause: &str, remedy| State::Off { cause: cause.into(), remedy };
    let abi = match status.landlock {
        LandlockStatus::NotImplemented => {
            return off(
                "this kernel has no Landlock",
                "run Linux 6.2 or later with CONFIG_SECURITY_LANDLOCK",
            );
        }
        LandlockStatus::NotEnabled => {
            return off("Landlock is not enabled", "start the kernel with landlock in its option lsm=");
        }
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
    };
    if status.ruleset == RulesetStatus::NotEnforced || abi < LEAST {
        return off(&format!("its Landlock (ABI {abi}) lets files be cut short"), "run Linux 6.2 or later");
    }
    let gaps: Vec<_> = BROUGHT_BY.iter().filter(|(since, _)| *since > abi).map(|(_, what)| *what).collect();
    if gaps.is_empty() { State::On } else { State::OnBut(gaps.join(", ")) }
}

impl Grant {
    fn access(&self) -> (&Path, BitFlags<AccessFs>) {
        let read = AccessFs::ReadFile | AccessFs::IoctlDev;
        let write = read | AccessFs::WriteFile | AccessFs::Truncate;
        match self {
            Self::Image { path, writable: false } => (path, read),
            Self::Image { path, writable: true } | Self::Recording(path) => (path, write),
            Self::SocketFolder(path) => (path, AccessFs::RemoveFile.into()),
            // A folder is opened to make the name of what was made in it stable.
            Self::ImageFolder(path) => (path, write | AccessFs::MakeReg | AccessFs::ReadDir),
        }
    }
}

fn path_fd(path: &Path) -> Result<PathFd, Error> {
    // The folder of a name without one is this (`Path::parent`).
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    PathFd::new(path).map_err(|error| {
        let remedy = "give a path that exists, or --sandbox=off";
        Error::new(path.display(), "keep the right to use it in the sandbox", error, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_is_told() {
        let grants = [Grant::SocketFolder("/no/such/folder".into())];
        let error = Rules::new(&grants).unwrap_err().to_string();
        assert!(
            error.starts_with("/no/such/folder: cannot keep the right to use it in the sandbox: "),
            "{error}"
        );
        assert!(error.ends_with("give a path that exists, or --sandbox=off"), "{error}");
    }

    #[test]
    fn the_folder_of_a_name_without_a_folder_is_found() {
        let folder = Path::new("disk.sock").parent().unwrap();
        Rules::new(&[Grant::SocketFolder(folder.into())]).unwrap();
    }

    #[test]
    fn an_image_for_reading_is_not_written() {
        let image = |writable| Grant::Image { path: "image".into(), writable }.access().1;
        assert!(!image(false).intersects(AccessFs::WriteFile | AccessFs::Truncate));
        assert!(image(true).contains(AccessFs::WriteFile | AccessFs::Truncate));
    }
}
