"""Where runs are recorded: MLflow. Importing this costs nothing; MLflow itself loads when it is first used."""
