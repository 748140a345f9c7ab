//! vfio-user: PCI devices for other programs, by the published protocol (version 0.1), of which all is here.
//!
//! ```text
//! client -- socket --> connection (stream -> messages) --> worker (messages -> registers) --> pci::PciFunction<device>
//!    |                      ^ DMA_READ, DMA_WRITE                 |                                 |
//!    +-- shared memory -----+-- dma (table -> MappedMemory) ------+------------- counted_handle  <----+
//!    +-- eventfds <------------------- irq (when: moderation) ----+
//! ```
//!
//! One thread has the device, and sleeps when there is nothing to do, some hundred microseconds after there was. Messages are
//! answered in order; a register write, an unmap or a reset that has to wait for the image holds up those after it.
//!
//! - Memory that comes without a descriptor is read and written by messages to the client.
//! - A client that breaks the protocol beyond an error in one command is let go; so is one that keeps us waiting.
//! - When a client goes, the device is reset, what is in flight completes, and the images are flushed. Then the next may come.
//!
//! **Not there:** migration, dirty-page tracking, twin sockets, regions that can be mapped, files for region accesses.

mod access;
mod connection;
mod counted_handle;
mod device;
pub mod devices;
mod dma;
mod irq;
mod moderation;
mod pci_device;
pub mod protocol;
mod version;
mod worker;

pub use counted_handle::CountedHandle;
pub(super) use device::VfioUserDevice;
pub use pci_device::PciDevice;
