//! A logical unit between its options and its controller.

use std::os::fd::BorrowedFd;

use scsi_model::front::virtio_scsi::{Address, LUN_MAX};

use crate::backend::Handle;
use crate::server::images::Image;
use crate::server::options::{Lun, ServerError};

/// A logical unit on its way into a controller.
pub(in crate::server) struct Unit {
    pub(super) address: Address,
    pub(super) identity: scsi_model::Config,
    pub(super) handle: Box<dyn Handle>,
}

impl Unit {
    /// Wakes whoever works on the unit.
    pub(in crate::server) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.handle.wake_fd()
    }
}

/// Makes a handle for a logical unit.
pub(in crate::server) fn open(lun: Lun) -> Result<(Image, Unit), ServerError> {
    let Lun { target, lun, config: identity, backend } = lun;
    let address = Address { target, lun };
    if lun > LUN_MAX {
        return Err(refused(lun.to_string(), "give a lun up to 16383"));
    }
    let handle = backend.handle()?;
    Ok((Image { key: key(address), backend }, Unit { address, identity, handle }))
}

/// What persistent state calls a unit.
fn key(address: Address) -> u32 {
    u32::from(address.target) << 14 | u32::from(address.lun)
}

pub(super) fn refused(value: String, remedy: &'static str) -> ServerError {
    ServerError::Option { option: "lun", value, remedy }
}
