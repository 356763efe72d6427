@echo off
rem CHAMP guidance training, from a bare clone (Python 3.11 or newer is all it needs):
rem
rem   command_train_guidance.bat demo           make the demo data, train the embedded tiny model on it, then a
rem                                             generator of dances, and make a video of an image and a song
rem   command_train_guidance.bat demo [flags]   the demo's first training alone, with flags of your own
rem   command_train_guidance.bat [flags]        train on ./data from Stable Diffusion 1.5
rem
rem Flags go to train_guidance.py and beat the configuration file (configs/demo.yaml, configs/train_guidance.yaml).
rem Relative paths are relative to this folder. From the environment:
rem   set NUM_PROCESSES=4              processes on this machine, one for each GPU
rem   set ACCELERATE_CONFIG=FILE.yaml  an accelerate configuration (configs/accelerate/: several GPUs, several machines)
rem   set CUDA_VISIBLE_DEVICES=0,1     the GPUs to use
setlocal EnableExtensions DisableDelayedExpansion
cd /d "%~dp0"

if "%~1"=="-h" goto help
if "%~1"=="--help" goto help

:: What to train: the demo, or the documented training.
set "CONFIG=configs/train_guidance.yaml"
set "FLAGS="
if not "%~1"=="demo" goto collect_flags
set "CONFIG=configs/demo.yaml"
shift
:collect_flags
if [%1]==[] goto flags_collected
set FLAGS=%FLAGS% %1
shift
goto collect_flags
:flags_collected

:: Environment: .venv, or the one that is active.
set "FOUND="
if defined VIRTUAL_ENV goto active_environment
if defined CONDA_PREFIX goto active_environment
for %%C in ("py -3" python python3 "py -3.13" "py -3.12" "py -3.11") do call :try_python %%~C
goto found
:active_environment
call :try_python python
:found
if not defined FOUND (
    echo error: Python 3.11 or newer is needed. Install it from https://www.python.org/downloads/ and run this again; 1>&2
    echo if an environment with an older one is active, deactivate it first. 1>&2
    exit /b 2
)
set "PYTHON="
for /f "usebackq delims=" %%P in (`%FOUND% scripts/set_up.py requirements.txt`) do set "PYTHON=%%P"
if not defined PYTHON exit /b 2

:: Demo data; what exists already is kept.
if not "%CONFIG%"=="configs/demo.yaml" goto train
"%PYTHON%" -m datasets.demo_data --output_dir demo_data
if errorlevel 1 exit /b %errorlevel%

:: Train. torch's launcher runs several processes on GPUs and on the CPU alike (accelerate's starts one on a CPU).
:train
set LAUNCHER="%PYTHON%"
:: After Ctrl-C the launchers kill in 30 seconds, too few to finish a step and save.
if not defined TORCH_ELASTIC_SHUTDOWN_TIMEOUT set "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"
if not defined ACCELERATE_CONFIG goto several_processes
set LAUNCHER="%PYTHON%" scripts\launch.py --config_file "%ACCELERATE_CONFIG%"
if defined NUM_PROCESSES set LAUNCHER=%LAUNCHER% --num_processes %NUM_PROCESSES%
goto start
:several_processes
if not defined NUM_PROCESSES goto start
if "%NUM_PROCESSES%"=="1" goto start
:: PyTorch for Windows is built without libuv.
set "USE_LIBUV=0"
set LAUNCHER="%PYTHON%" scripts\launch.py --standalone --nproc_per_node %NUM_PROCESSES%
:start
%LAUNCHER% train_guidance.py --config %CONFIG%%FLAGS%
if errorlevel 1 exit /b %errorlevel%
if not "%CONFIG%"=="configs/demo.yaml" exit /b 0
if defined FLAGS exit /b 0
:: The demo goes on: the generator of dances, then a dancer and another's song that neither model has seen.
%LAUNCHER% train_music_to_pose.py --config configs/demo_music_to_pose.yaml
if errorlevel 1 exit /b %errorlevel%
set "POSE=demo_output/samples/standing_pose.json"
"%PYTHON%" -m demo.standing_pose --sample validation_00000 --output %POSE%
if errorlevel 1 exit /b %errorlevel%
"%PYTHON%" sample_guidance.py --model_path demo_output/final --music_to_pose_path demo_output/music_to_pose/final ^
    --reference_image demo_data/validation/reference_images/validation_00000.png --reference_pose %POSE% ^
    --music demo_data/validation/music_features/validation_00001.npy ^
    --audio demo_data/validation/videos/validation_00001.mp4 ^
    --output demo_output/samples/from_an_image_and_a_song.mp4 --panel --overwrite ^
    --guidance_scale 2.0 --num_inference_steps 12
exit /b %errorlevel%

:help
for /f "tokens=1* delims= " %%A in ('findstr /b /c:"rem " command_train_guidance.bat') do echo(%%B
exit /b 0

:try_python
if defined FOUND exit /b 0
%* -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1
if not errorlevel 1 set "FOUND=%*"
exit /b 0
