//! A virtual machine monitor on Linux: a vCPU's thread, an event loop, and a disk in an image file between them.
//!
//! `cargo run -p host-std --example vmm`

#[path = "../../virtio-blk-model/examples/guest/mod.rs"]
mod guest;

use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex};

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::storage::CacheMode;
use blk_core::units::GuestAddr;
use host_std::backend::{FileBackend, FileOptions, FileStorage};
use host_std::memory::MappedMemory;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;

struct Vmm {
    memory: MappedMemory,
    /// The device and its image; its interrupt line; whether a register write waits for the image.
    disk: Mutex<(Mmio<1, 64>, [FileStorage; 1], bool, bool)>,
    /// Told when the disk has been polled.
    polled: Condvar,
}

impl Vmm {
    /// Does what can be done now. The image's descriptor becomes readable when there is more.
    fn poll(&self) {
        let (device, image, line, pending) = &mut *self.disk.lock().unwrap();
        loop {
            let progress = device.poll(&self.memory, &mut image[..]);
            *line = progress.irq.line(0).unwrap_or(*line);
            *pending = progress.pending_write;
            if !progress.again && image[0].arm() {
                return self.polled.notify_all();
            }
        }
    }
}

/// A vCPU's exits.
impl guest::Machine for Arc<Vmm> {
    fn memory(&self) -> &impl GuestMemory {
        &self.memory
    }

    fn load(&mut self, offset: u64) -> u32 {
        let (device, image, line, _) = &mut *self.disk.lock().unwrap();
        let read = device.read(Region::Bar(0), offset, Width::Dword, &self.memory, &mut image[..]);
        *line = read.irq.line(0).unwrap_or(*line);
        read.value as u32
    }

    fn store(&mut self, offset: u64, value: u32) {
        {
            let (device, image, line, _) = &mut *self.disk.lock().unwrap();
            let (bar, value) = (Region::Bar(0), value.into());
            let write = device.write(bar, offset, Width::Dword, value, &self.memory, &mut image[..]);
            *line = write.irq.line(0).unwrap_or(*line);
        }
        self.poll();
        // The vCPU does not run while its write is pending.
        drop(self.polled.wait_while(self.disk.lock().unwrap(), |&mut (_, _, _, pending)| pending).unwrap());
    }

    fn halt(&mut self) {
        drop(self.polled.wait_while(self.disk.lock().unwrap(), |&mut (_, _, line, _)| !line).unwrap());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Not in /tmp, which is often a tmpfs and has nothing stable.
    let file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    file.as_file().set_len(1 << 20)?;
    let image = FileBackend::open(file.path(), &FileOptions::new(CacheMode::None))?.handle()?;
    let ended = image.as_fd().try_clone_to_owned()?;
    let disk = Mutex::new((Mmio::new(Blk::new(Config::DEFAULT)), [image], false, false));
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 1 << 20)])?;
    let mut vmm = Arc::new(Vmm { memory, disk, polled: Condvar::new() });
    let event_loop = Arc::clone(&vmm);
    std::thread::spawn(move || {
        while poll(&mut [PollFd::new(&ended, PollFlags::IN)], None).is_ok() {
            event_loop.poll();
        }
    });
    Ok(guest::run(&mut vmm)?)
}
