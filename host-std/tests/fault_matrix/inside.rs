//! A server in this process, for what is no system call: the completions of an io_uring. The seam of system calls fails them.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ata_model::DriveConfig;
use blk_core::storage::CacheMode;
use host_std::backend::{Backend, FileBackend, FileOptions, IoEngine, IoVecs, LinuxSyscalls, Syscalls};
use host_std::server::vfio_user::devices;
use host_std::server::{BlkOptions, Controller, Lun, ScsiOptions, Server};
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};
use syscalls::Sysno;

use crate::Front;
use crate::calls::{Action, Call, Plan, Target};
use crate::history::{Effect, History};
use crate::tracer::{Exit, Made, Watched};

/// The thread that completions are named by.
const RING: &str = "ring";
/// How long an image may still be locked by the server before.
const LOCK_WAIT: Duration = Duration::from_secs(4);

/// A server in this process.
pub(crate) struct Inside {
    controller: Controller,
    backend: Arc<dyn Backend>,
    thread: Option<JoinHandle<()>>,
}

impl Inside {
    /// Makes the image and serves it at `socket`; the error that ends the server goes to `log`.
    pub(crate) fn start(
        front: Front,
        [image, socket, log]: [&Path; 3],
        bytes: u64,
        seam: Seam,
    ) -> std::result::Result<Self, String> {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(image);
        let file = file.map_err(|error| error.to_string())?;
        if file.metadata().map_err(|error| error.to_string())?.len() < bytes {
            file.set_len(bytes).map_err(|error| error.to_string())?;
        }
        let options = FileOptions {
            engine: IoEngine::Ring,
            workers: 1,
            lock_wait: LOCK_WAIT,
            ..FileOptions::new(CacheMode::None)
        };
        let watched = Arc::clone(&seam.watched);
        let backend: Arc<dyn Backend> =
            Arc::new(FileBackend::open_on(seam, image, &options).map_err(|error| error.to_string())?);
        let server = server(front, &backend)?;
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(|error| error.to_string())?;
        let controller = server.controller();
        let (listening, log) = (socket.to_owned(), log.to_owned());
        watched.change(|seen| seen.listening.push(listening));
        let thread = std::thread::spawn(move || {
            let result = server.serve(&listener);
            drop((server, listener));
            let code = match result {
                Ok(()) => 0,
                Err(error) => {
                    // Where it cannot be written, the exit is found to be silent.
                    let _ = std::fs::write(log, format!("ended: {error}\n"));
                    1
                }
            };
            watched.change(|seen| seen.exit = Some(Exit::Code(code)));
        });
        Ok(Self { controller, backend, thread: Some(thread) })
    }

    /// As SIGTERM does.
    pub(crate) fn stop(&self) {
        self.controller.stop();
    }

    /// As an operator does.
    pub(crate) fn resize(&self, bytes: u64) -> std::result::Result<(), String> {
        self.backend.resize(Some(bytes)).map_err(|error| error.to_string())?;
        self.controller.resized();
        Ok(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stop();
        // One that hangs has been found to; it is left behind.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _ = thread.join();
        }
    }
}

fn server(front: Front, backend: &Arc<dyn Backend>) -> std::result::Result<Server, String> {
    let backend = Arc::clone(backend);
    let server = match front {
        Front::VirtioBlk => Server::blk(&BlkOptions::default(), backend),
        Front::VirtioScsi => {
            let config = scsi_model::Config::new("BLKHOST", "DISK", "1", "");
            Server::scsi(&ScsiOptions::default(), vec![Lun { target: 0, lun: 0, config, backend }])
        }
        Front::Ahci => {
            let device = devices::ahci(vec![DriveConfig::new("BLKHOST DISK", "")], true)
                .map_err(|error| error.to_string())?;
            let handles = vec![backend.handle().map_err(|error| error.to_string())?];
            Server::pci("ahci", device, handles)
        }
    };
    server.map_err(|error| error.to_string())
}

/// The kernel, but for one completion of an io_uring.
pub(crate) struct Seam {
    plan: Option<Plan>,
    history: Arc<History>,
    watched: Arc<Watched>,
    reads: AtomicU32,
    writes: AtomicU32,
}

impl Seam {
    pub(crate) fn new(plan: Option<Plan>, history: Arc<History>, watched: Arc<Watched>) -> Self {
        Self { plan, history, watched, reads: AtomicU32::new(0), writes: AtomicU32::new(0) }
    }
}

impl Syscalls for Seam {
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        LinuxSyscalls.read(fd, into, offset)
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        let entered = self.history.now();
        let moved = LinuxSyscalls.write(fd, from, offset, dsync)?;
        self.history.add(entered, Effect::Wrote { range: offset..offset + moved as u64, stable: dsync });
        Ok(moved)
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let entered = self.history.now();
        LinuxSyscalls.fdatasync(fd)?;
        self.history.add(entered, Effect::Synced);
        Ok(())
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        let entered = self.history.now();
        LinuxSyscalls.fallocate(fd, mode, offset, bytes)?;
        self.history.add(entered, Effect::Wrote { range: offset..offset + bytes, stable: false });
        Ok(())
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_discard(fd, offset, bytes)
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_zero(fd, offset, bytes)
    }

    fn may_run_inline(&self) -> bool {
        true
    }

    fn ring(&self) -> bool {
        true
    }

    fn ring_ended(&self, write: bool, result: Result<usize>) -> Result<usize> {
        // The errors of a completion are those of the call that it stands for.
        let (counter, syscall) =
            if write { (&self.writes, Sysno::pwritev2) } else { (&self.reads, Sysno::preadv2) };
        let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
        let call = Call { thread: RING.into(), syscall, number };
        let plan = self.plan.as_ref().filter(|plan| plan.call == call);
        self.watched.change(|seen| {
            seen.reached |= plan.is_some();
            seen.made.push(Made { call, library: false, target: Target::Other });
        });
        match plan.map(|plan| plan.action) {
            Some(Action::Fail(errno)) => Err(Errno::from_raw_os_error(errno.into_raw())),
            _ => result,
        }
    }
}
