//! Turns a plain ECS task definition into that of a mesh task.
//!
//! [`render()`] adds the sidecars. [`policy()`] returns the statements that the task's two roles need. [`differences`] compares the deployed
//! definition with the rendered one. [`Settings`] is the document that configures all this, and [`schema`] is its JSON schema.
//! [`app_mesh`] converts the resources of AWS App Mesh into config entries of Consul.

pub mod app_mesh;
mod check;
mod policy;
mod problem;
mod render;
mod resources;
mod rules;
mod settings;
mod sidecars;
mod task;

pub use check::differences;
pub use policy::policy;
pub use problem::{Document, Problem, Problems};
pub use render::{Rendered, render};
pub use settings::{Agent, CONSUL_IMAGE, Images, Mode, Secrets, Settings, schema};
pub use sidecars::LABEL;
