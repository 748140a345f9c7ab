//! A guest driver, a virtio-blk device and an image file: what eight writes and a flush become in each cache mode.
//!
//! `cargo run -p host-std --example image`

use blk_core::storage::CacheMode;
use blk_core::units::GuestAddr;
use host_std::backend::{FileBackend, FileOptions};
use host_std::memory::MappedMemory;
use host_std::testing::guest::{GuestDisk, Machine, VirtioBlk};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::mmio::Mmio;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Not in /tmp, which is often a tmpfs and has nothing stable.
    let image = tempfile::NamedTempFile::new_in("/var/tmp")?;
    image.as_file().set_len(8 << 20)?;
    for mode in CacheMode::ALL {
        let backend = match FileBackend::open(image.path(), &FileOptions::new(mode)) {
            Ok(backend) => backend,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 4 << 20)])?;
        let device = Mmio::new(Blk::<1, 64>::new(Config::DEFAULT));
        let mut disk = VirtioBlk::new(Machine::new(device, memory, vec![backend.handle()?]))?;
        let cache = if disk.write_cache()? { "volatile" } else { "none" };
        for sector in 0..8 {
            disk.write(sector, &[sector as u8; 512], false)?;
        }
        disk.flush()?;
        let counts = backend.counts();
        println!(
            "{:12}  cache told to the guest: {cache:8}  {} writes, of which O_DSYNC {}; {} flush: fdatasync {}",
            mode.name(),
            counts.writes,
            counts.dsync_writes,
            counts.flushes,
            counts.fdatasync_calls,
        );
    }
    Ok(())
}
