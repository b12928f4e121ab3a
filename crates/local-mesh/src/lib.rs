//! The local mesh: its parts, images, tasks, events and timelines.
