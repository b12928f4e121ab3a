//! Turns a plain ECS task definition into that of a mesh task.
//!
//! [`render()`] adds the sidecars; [`policy()`] gives the statements that the task's two roles need; [`differences`] compares what is
//! deployed with what is rendered; [`Settings`] is the document that says how, and [`schema`] its JSON schema.

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
pub use settings::{Agent, Images, Mode, Secrets, Settings, schema};
pub use sidecars::LABEL;
