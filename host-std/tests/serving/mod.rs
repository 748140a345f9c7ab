//! Servers as processes of their own, for tests that end them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server process, killed when it is dropped.
pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// QEMU's storage daemon on an image, or `None` where it is not installed.
    pub fn qemu_storage_daemon(socket: &Path, image: &Path, queues: u16) -> Option<Self> {
        let node = format!(
            "driver=file,node-name=f,filename={},aio=io_uring,cache.direct=off,discard=unmap",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]);
        Self::start(&mut command, socket)
    }

    /// Starts a server that listens on `socket`, or returns `None` if there is no such program.
    pub fn start(command: &mut Command, socket: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(socket);
        let process = match command.stdin(Stdio::null()).spawn() {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        };
        Some(Self { process, socket: socket.to_owned() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill().expect("the process is ours");
        self.process.wait().expect("the process is ours");
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("the process is ours").is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
