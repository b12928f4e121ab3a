//! The arguments of `mesh-task render`, `mesh-task policy` and `mesh-task app-mesh`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use mesh_task::{Document, Problems, app_mesh, differences, policy, render};
use serde_json::Value;
use sidecar_kit::exit;

/// Turns a plain task definition into that of a mesh task, and App Mesh's resources into config entries of Consul.
///
/// Each error in a document is a line on standard error, with its path. Exit codes: 0 for success; 1 for an
/// error, or if the check found differences; 2 for a wrong command line.
#[derive(Debug, Parser)]
#[command(name = "mesh-task", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the definition of the mesh task, as an input of `aws ecs register-task-definition --cli-input-json`.
    Render(RenderArguments),
    /// Prints the policies that the task's execution role and its task role need for the sidecars.
    Policy(Documents),
    /// Prints Consul's config entries for resources of AWS App Mesh, as a list in the order in which Consul accepts them. Each field
    /// of the input that these entries cannot express is reported on standard error: one line with its path.
    AppMesh(AppMeshArguments),
}

#[derive(Debug, Args)]
struct AppMeshArguments {
    /// The resources: inputs of App Mesh's `create-…` commands, outputs of its `describe-…` commands, or lists of these; - is standard
    /// input.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Documents {
    /// The settings; docs/mesh-task.schema.json describes them.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// The task definition: an input of `register-task-definition` or an output of `describe-task-definition`; - is standard input.
    #[arg(value_name = "TASK")]
    task: PathBuf,
}

#[derive(Debug, Args)]
struct RenderArguments {
    #[command(flatten)]
    documents: Documents,
    /// Prints the differences from this deployed task definition instead, one per line. Exits with 1 if there are any.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not JSON", path.display())]
    NotJson { path: PathBuf, source: serde_json::Error },
    #[error("two documents are -: expected at most one on standard input")]
    TwiceStandardInput,
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

fn main() -> ExitCode {
    let arguments: Arguments = exit::parse_arguments();
    let done = match &arguments.command {
        Command::Render(arguments) => run_render(arguments),
        Command::Policy(documents) => run_policy(documents),
        Command::AppMesh(arguments) => run_app_mesh(arguments),
    };
    done.unwrap_or_else(|error| exit::fail("mesh-task", &exit::one_line(&error), exit::FAILURE))
}

fn run_render(RenderArguments { documents, check }: &RenderArguments) -> Result<ExitCode, Error> {
    let (settings, task) = documents.read()?;
    let deployed = check.as_deref().map(json_of).transpose()?;
    let rendered = match render(&settings, &task) {
        Ok(rendered) => rendered,
        Err(problems) => return Ok(documents.report(&problems)),
    };
    for note in rendered.notes {
        eprintln!("note: {note}");
    }
    let Some(deployed) = deployed else { return print(&rendered.definition) };
    let differences = differences(&deployed, &rendered.definition);
    let lines: String = differences.iter().map(|line| format!("{line}\n")).collect();
    write(&lines)?;
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_policy(documents: &Documents) -> Result<ExitCode, Error> {
    let (settings, task) = documents.read()?;
    match policy(&settings, &task) {
        Ok(policy) => print(&policy),
        Err(problems) => Ok(documents.report(&problems)),
    }
}

fn run_app_mesh(AppMeshArguments { files }: &AppMeshArguments) -> Result<ExitCode, Error> {
    if files.iter().filter(|file| *file == Path::new("-")).count() > 1 {
        return Err(Error::TwiceStandardInput);
    }
    let read = |file: &PathBuf| Ok((file.display().to_string(), json_of(file)?));
    let documents = files.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
    match app_mesh::convert(&documents) {
        Ok(converted) => {
            converted.reports.iter().for_each(|line| eprintln!("{line}"));
            print(&converted.entries.into())
        }
        Err(errors) => {
            errors.iter().for_each(|line| eprintln!("error: {line}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

impl Documents {
    fn read(&self) -> Result<(Value, Value), Error> {
        if self.settings == Path::new("-") && self.task == Path::new("-") {
            return Err(Error::TwiceStandardInput);
        }
        Ok((json_of(&self.settings)?, json_of(&self.task)?))
    }

    /// One line for each problem. The line begins with the problem's file.
    fn report(&self, problems: &Problems) -> ExitCode {
        for problem in &problems.0 {
            let file = match problem.document {
                Document::Settings => &self.settings,
                Document::Task => &self.task,
            };
            eprintln!("error: {}: {}", file.display(), problem.error);
        }
        ExitCode::FAILURE
    }
}

fn json_of(path: &Path) -> Result<Value, Error> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| Error::NotJson { path: path.to_owned(), source })
}

fn print(value: &Value) -> Result<ExitCode, Error> {
    write(&format!("{value:#}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn write(text: &str) -> Result<(), Error> {
    io::stdout().write_all(text.as_bytes()).map_err(Error::Write)
}
