//! Confinement of the server, before its first thread starts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::config::{Config, ConfigError, ImageConfig};
use crate::backend::IoThread;
use crate::confine::permissions::SocketAccess;
use crate::confine::{self, Confinement, Error, Grant, Policy, Report, Role, Sandbox, User};

/// How the process is confined.
pub(super) struct Confined {
    report: Report,
    /// Folders whose images may be opened; `None` if any may.
    folders: Option<Vec<PathBuf>>,
}

impl Confined {
    /// Confines this thread, which is the only one, and those that it starts.
    pub(super) fn enter(config: &Config) -> anyhow::Result<Self> {
        let user = config.user.as_deref().map(str::parse).transpose()?;
        let folders = &config.hotplug_folders;
        let policy =
            Policy { sandbox: config.sandbox, user, grants: grants(config), new_rings: !folders.is_empty() };
        let report = Confinement::prepare(policy)?.enter()?;
        if report.is_complete() {
            tracing::info!("{report}");
        } else {
            tracing::warn!("{report}");
        }
        let folders = (config.sandbox != Sandbox::Off).then(|| folders.clone());
        Ok(Self { report, folders })
    }

    /// Finds what could not be entered before anything is opened, made or waited for.
    pub(super) fn check(config: &Config) -> anyhow::Result<()> {
        config.user.as_deref().map(str::parse::<User>).transpose()?;
        for folder in &config.hotplug_folders {
            std::fs::read_dir(folder).map_err(|error| {
                let place = format!("--hotplug-folder {}", folder.display());
                ConfigError::new(place, format!("cannot be read: {error}"), "give a folder that exists")
            })?;
        }
        Ok(())
    }

    /// Why an image could not be plugged in: also names the sandbox if that is why.
    pub(super) fn explain(&self, image: &ImageConfig, refusal: String) -> String {
        let denied = io::Error::from_raw_os_error(libc::EACCES).to_string();
        let Some(folders) = self.folders.as_ref().filter(|_| refusal.contains(&denied)) else {
            return refusal;
        };
        // As the kernel sees it: what a link leads to.
        let resolve = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let paths = [Some(&image.path), image.record.as_ref()].into_iter().flatten();
        let outside = paths
            .map(|path| resolve(parent(path)))
            .find(|parent| !folders.iter().any(|folder| parent.starts_with(resolve(folder))));
        let Some(outside) = outside else { return refusal };
        format!(
            "{}: cannot plug it in: the sandbox permits images of the start and of the folders of --hotplug-folder; serve with --hotplug-folder {}, or with --sandbox off",
            image.path.display(),
            outside.display()
        )
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.fmt(f)
    }
}

/// Who may connect to the devices' sockets.
pub(super) fn socket_access(config: &Config) -> Result<SocketAccess, Error> {
    Ok(SocketAccess {
        mode: config.socket_mode.as_deref().map(str::parse).transpose()?,
        group: config.socket_group.as_deref().map(str::parse).transpose()?,
    })
}

/// The first that a thread of an image does.
pub(super) fn io_thread(thread: IoThread) {
    confine::thread(match thread {
        IoThread::Worker => Role::Worker,
        IoThread::Flusher => Role::Flusher,
    });
}

fn grants(config: &Config) -> Vec<Grant> {
    let images = config.devices.iter().flat_map(|device| &device.images);
    let sockets = config.devices.iter().filter_map(|device| device.socket.as_ref()).chain(&config.control);
    let opened =
        images.clone().map(|image| Grant::Image { path: image.path.clone(), writable: !image.readonly });
    let recordings = images.filter_map(|image| image.record.clone()).map(Grant::Recording);
    let folders = config.hotplug_folders.iter().cloned().map(Grant::ImageFolder);
    let sockets = sockets.map(|path| Grant::SocketFolder(parent(path).into()));
    opened.chain(recordings).chain(folders).chain(sockets).collect()
}

/// The folder of a path: that of a name without one is this.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
