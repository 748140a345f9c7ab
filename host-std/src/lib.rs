//! Linux under the disk device models: files and block devices whose completed flushes are stable, guest memory that
//! the kernel reads and writes in place, and the question "is my stack safe?".
//!
//! - [`backend`]: a file or block device behind [`Storage`](blk_core::storage::Storage), one handle for each queue.
//! - [`confine`]: what a server gives up once it has started.
//! - [`fault`]: a backend that fails when it is told to, for tests.
//! - [`memory`]: guest memory mapped into this process.
//! - [`probe`]: what lies between a path and the medium, and whether it keeps what was acknowledged.
//! - [`proof`]: the guests that the crash explorer runs, front by front.
//! - [`record`]: everything that a host was given, in order, with its data.
//! - [`recording`]: the file that [`record`] writes and [`replay`] reads: its format, and what it says.
//! - [`replay`]: the image at any point of a recording, and every image that a power cut could have left there.
//! - [`serve`]: the program's side of a server: options, error policy, control socket.
//! - [`server`]: our devices for the virtual machines of other programs, over vhost-user and vfio-user.
//! - [`testing`]: clients of the servers and guest drivers, for tests and benchmarks without a virtual machine.
//! - [`throttle`]: limits on the operations and bytes of an image per second, with bursts.
//! - [`trace`]: the kernel's own count of the writes and flushes that reach a block device.
//!
//! **Goals:** a completed flush is stable or fails, for good; no copy and no allocation for a request whose memory is aligned;
//! the truth about the stack below. **Not goals:** a virtual machine monitor, image formats.
//!
//! | | |
//! |---|---|
//! | Images | regular files and block devices, raw |
//! | Cache modes | writethrough, writeback, none, directsync, unsafe |
//! | Engine | on the queue's thread what waits for no device, io_uring for direct I/O, worker threads for the rest; one flusher with fdatasync; `RWF_DSYNC` for FUA where it is honoured |
//! | Server | vhost-user for virtio-blk and virtio-scsi, with in-flight tracking, live resize, an error policy and limits of rate; vfio-user for AHCI, PCI IDE, virtio-blk and virtio-scsi |
//! | Guests | drivers in this process: IDE by PIO and DMA, AHCI with and without NCQ, SCSI, virtio-scsi, virtio-blk |
//! | **Not there** | **image formats, KVM; network storage; taking back operations in flight: a reset waits for them; systems other than Linux** |

pub mod backend;
#[cfg(feature = "server")]
pub mod confine;
#[cfg(feature = "server")]
pub mod fault;
pub mod memory;
#[cfg(feature = "program")]
pub mod probe;
#[cfg(feature = "program")]
pub mod proof;
#[cfg(feature = "program")]
pub mod record;
#[cfg(feature = "program")]
pub mod recording;
#[cfg(feature = "program")]
pub mod replay;
#[cfg(feature = "program")]
pub mod serve;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "program")]
pub mod testing;
#[cfg(feature = "server")]
pub mod throttle;
#[cfg(feature = "server")]
mod timed_wake;
#[cfg(feature = "program")]
pub mod trace;
mod wake;
