from dreambooth_core.cli import main

main()
