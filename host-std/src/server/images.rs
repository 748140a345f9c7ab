//! The images of a device, each at the place of its unit.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::backend::Backend;
use crate::mutex::lock;

/// An image and what its unit is called: 22 bits, 0 where there is only one.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) key: u32,
    pub(super) backend: Arc<dyn Backend>,
}

/// The images of a device. Units come and go; a place stays.
pub(super) struct Images(Mutex<Vec<Option<Image>>>);

impl Images {
    pub(super) fn new(images: Vec<Option<Image>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(images)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Option<Image>>> {
        lock(&self.0)
    }

    /// The client has gone, and with it what it said of latches.
    pub(super) fn forget_client_latches(&self) {
        for image in self.lock().iter().flatten() {
            image.backend.set_client_latch(None);
        }
    }

    pub(super) fn set(&self, place: usize, image: Option<Image>) {
        if let Some(slot) = self.lock().get_mut(place) {
            *slot = image;
        }
    }
}
