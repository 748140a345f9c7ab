//! virtio-blk behind virtio-mmio.

#![no_std]
#![no_main]

use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;

freestanding::program!(Mmio<1, 64>, Mmio::new(Blk::new(Config::DEFAULT)));
