//! The arguments of `serve` that say what the process gives up.

use std::path::PathBuf;

use clap::Args;

use host_std::confine::Sandbox;
use host_std::serve::config::Config;

#[derive(Debug, Args)]
pub(super) struct SandboxArgs {
    /// Confine the process once it has started: off (for a debugger), auto (as far as this kernel can) or require (in full, or
    /// the start fails). Default: auto.
    #[arg(long, value_name = "MODE")]
    sandbox: Option<Sandbox>,

    /// Become this user, and this group or the user's own, once all files are open. The images may belong to another.
    #[arg(long, value_name = "NAME[:GROUP]")]
    user: Option<String>,

    /// Permissions of the devices' sockets. Default: 600, or 660 with --socket-group. (The control socket is always 600.)
    #[arg(long, value_name = "OCTAL")]
    socket_mode: Option<String>,

    /// Give the devices' sockets to this group, whose members may then connect.
    #[arg(long, value_name = "NAME")]
    socket_group: Option<String>,

    /// Permit `ctl hotplug` of images in this folder and below, which the sandbox otherwise refuses. May be given several times.
    #[arg(long = "hotplug-folder", value_name = "DIR")]
    hotplug_folders: Vec<PathBuf>,
}

impl SandboxArgs {
    /// Sets what was given on the command line, which goes before a file.
    pub(super) fn apply(&self, config: &mut Config) {
        config.sandbox = self.sandbox.unwrap_or(config.sandbox);
        for (option, value) in [
            (&mut config.user, &self.user),
            (&mut config.socket_mode, &self.socket_mode),
            (&mut config.socket_group, &self.socket_group),
        ] {
            if value.is_some() {
                option.clone_from(value);
            }
        }
        config.hotplug_folders.extend(self.hotplug_folders.iter().cloned());
    }
}
